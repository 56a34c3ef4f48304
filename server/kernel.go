package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/internal/ublkctl"
	"holdfast/internal/users"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/server/device"
	"holdfast/standby"
	"holdfast/state"
	"holdfast/ublk"
)

// live is what the server asks of a device that is served.
type live interface {
	ID() int
	Path() string
	Status() api.Status
	Close(ctx context.Context, force bool) error
	Attach(consumer string) error
	Detach(consumer string) error
	SetStandby(on bool) error
	Replace(ctx context.Context, r device.Replace) error
	// Restored is what another server needs to know of its standby, nil for none.
	Restored() *standby.Restored
	Leave(ctx context.Context, drain time.Duration) error
	Unanswered() time.Duration
}

var _ live = (*device.Device)(nil)

// kernel is everything below the server: the driver, the device, the images.
// There are two: this machine's, and the tests'.
type kernel interface {
	// ready is nil when devices can be made, else what is missing. It tries
	// anew each time, so that a modprobe needs no restart of the server.
	ready() error
	open(ctx context.Context, spec api.Spec, o openOptions) (live, error)
	// closeImages opens the images of a spec that was being served by a dead
	// server, and closes them cleanly, if nothing of that one is under way.
	closeImages(spec api.Spec, known device.Known) error
	// examine says what would keep another server from taking the images of a device that
	// is served.
	examine(spec api.Spec, known device.Known) error
	// left says what the driver has of a device whose server is known to be gone.
	left(ctx context.Context, disk state.Disk) (leftover, error)
	// delete deletes it.
	delete(ctx context.Context, disk state.Disk) error
	// unreleased says whether the driver takes it for served, and its server is gone.
	unreleased(ctx context.Context, disk state.Disk) bool
	// holders says who keeps the reference of a server that is gone.
	holders(id int) string
	// fail takes it over to fail its I/O.
	fail(ctx context.Context, disk state.Disk) (failing, error)
	// users says who holds disks, given as number → path.
	users(disks map[int]string) (map[int][]api.User, error)
	close()
}

// leftover is what the driver has of a device without a server.
type leftover int

const (
	leftNothing leftover = iota
	leftDead             // it can't be recovered, only deleted
	leftWaiting          // it waits, or will wait, for a server
)

// failing is a device whose I/O fails.
type failing interface {
	Leave(ctx context.Context) error
	Stop(ctx context.Context) error
}

// openOptions are what a device needs of the server.
type openOptions struct {
	takeOver bool      // the images' in-use marks are our own
	tag      state.Tag // of a device that is made
	sw       *standby.Switch
	event    func(api.Event)
	// recover takes over the device that a dead server left; nil: make one.
	recover *device.Recovery
	known   device.Known
	opened  func(device.Opened) error
	added   func(id int) error
}

var (
	_ kernel  = (*thisKernel)(nil)
	_ failing = (*device.Failing)(nil)
)

// thisKernel is the machine's own.
type thisKernel struct {
	log    zerolog.Logger
	served func(queues int) // may be nil
	driver ublkctl.Opener
}

func newKernel(cfg *Config) *thisKernel {
	return &thisKernel{log: cfg.Log, served: cfg.Served}
}

func (k *thisKernel) ready() error {
	return k.driver.Ready()
}

func (k *thisKernel) open(ctx context.Context, spec api.Spec, o openOptions) (live, error) {
	ctl, err := k.driver.Control()
	if err != nil {
		return nil, err
	}
	dev, err := device.Open(ctx, spec, device.Options{Control: ctl, Log: k.log, Tag: uint64(o.tag), TakeOver: o.takeOver, Event: o.event, Key: o.sw, Recover: o.recover,
		Known: o.known, Opened: o.opened, Added: o.added})
	if err != nil {
		return nil, err
	}
	if k.served != nil {
		k.served(dev.Status().Queues)
	}
	return dev, nil
}

func (k *thisKernel) closeImages(spec api.Spec, known device.Known) error {
	stack, err := stack.Open(spec.Images, stack.Options{TakeOver: true, Locked: true, Before: known.Before, Log: func(format string, args ...any) {
		k.log.Info().Str("device", spec.Name).Msgf(format, args...)
	}})
	if err != nil {
		return err
	}
	return stack.Close()
}

func (k *thisKernel) examine(spec api.Spec, known device.Known) error {
	if err := device.Probe(spec.Images); err != nil {
		return err
	}
	return stack.Examine(spec.Images, stack.Options{ReadOnly: spec.ReadOnly, Damaged: spec.Damaged, TakeOver: true, Continue: true, Size: known.Size, RawSize: known.RawSize})
}

func (k *thisKernel) left(ctx context.Context, disk state.Disk) (leftover, error) {
	ctl, err := k.driver.Control()
	if errors.Is(err, ublk.ErrNoDriver) {
		return leftNothing, nil
	}
	if err != nil {
		return leftNothing, err
	}
	info, err := ctl.GetInfo(ctx, disk.ID)
	switch {
	case errors.Is(err, ublk.ErrNoDevice):
		return leftNothing, nil
	case err != nil:
		return leftNothing, err
	case state.Tag(info.Tag) != disk.Tag: // the number is somebody else's by now
		return leftNothing, nil
	case info.State != ublk.Dead && info.Flags.Has(ublk.FeatureUserRecovery):
		return leftWaiting, nil
	}
	return leftDead, nil
}

func (k *thisKernel) fail(ctx context.Context, disk state.Disk) (failing, error) {
	ctl, err := k.driver.Control()
	if err != nil {
		return nil, err
	}
	f, err := device.Fail(ctx, ctl, disk.ID, uint64(disk.Tag))
	if err != nil {
		return nil, err
	}
	return f, nil
}

// delete waits for the server's end, of which the driver hears once the last reference
// to the server's files is gone: that can be after the process is.
func (k *thisKernel) delete(ctx context.Context, disk state.Disk) error {
	ctl, err := k.driver.Control()
	if err != nil {
		return err
	}
	for begin := time.Now(); ; {
		info, err := ctl.GetInfo(ctx, disk.ID)
		switch {
		case errors.Is(err, ublk.ErrNoDevice):
			return nil
		case err != nil:
			return err
		case state.Tag(info.Tag) != disk.Tag: // the number is another device's
			return nil
		case info.State != ublk.Live:
			return deleteDevice(ctx, ctl, disk.ID)
		case info.Unreleased() && time.Since(begin) > unreleasedTime:
			return fmt.Errorf("%w: %s", ublk.ErrUnreleased, unreleasedText(disk.ID, k.holders(disk.ID)))
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the driver still takes it for served: %w", ctx.Err())
		}
	}
}

func (k *thisKernel) unreleased(ctx context.Context, disk state.Disk) bool {
	ctl, err := k.driver.Control()
	if err != nil {
		return false
	}
	info, err := ctl.GetInfo(ctx, disk.ID)
	return err == nil && state.Tag(info.Tag) == disk.Tag && info.Unreleased()
}

func (k *thisKernel) holders(id int) string { return findHolders("/proc", id, holdersTime) }

// deleteDevice does not wait for those who still have the dead device open,
// where the driver lets us (6.9).
func deleteDevice(ctx context.Context, ctl *ublk.Control, id int) error {
	err := ctl.DeleteAsync(ctx, id)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = ctl.Delete(ctx, id)
	}
	if errors.Is(err, ublk.ErrNoDevice) {
		return nil
	}
	return err
}

func (k *thisKernel) users(disks map[int]string) (map[int][]api.User, error) {
	return users.Find("/proc", "/sys", disks)
}

func (k *thisKernel) close() { k.driver.Close() }

var driverErrors = []error{ublk.ErrNoDriver, ublk.ErrPermission, ublk.ErrIOUringDisabled, ublk.ErrTooOld, ublk.ErrTooManyDevices}
var imageErrors = []error{ploop.ErrNotPloop, ploop.ErrNotImage, ploop.ErrCorrupt, ploop.ErrInUse, ploop.ErrLocked, ploop.ErrGeometry, ploop.ErrUnsupported, ploop.ErrLimit, ploop.ErrDiverged, stack.ErrInFlight, ploop.ErrUnproven, stack.ErrNoLock, stack.ErrLocalLock}

// classify gives an error of a creation its code.
func classify(err error) *api.Error {
	var e *api.Error
	var missing *ublk.MissingFeatureError
	var io *ploop.IOError
	code := api.CodeInternal
	switch {
	case errors.As(err, &e):
		return e
	case is(err, driverErrors), errors.As(err, &missing):
		code = api.CodeDriver
	case is(err, imageErrors), errors.As(err, &io):
		code = api.CodeImage
	}
	return api.Errorf(code, "%w", err)
}

func is(err error, any []error) bool {
	for _, target := range any {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}
