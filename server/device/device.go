package device

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/internal/failpoint"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/standby"
	"holdfast/ublk"
)

// ErrBusy is returned by Close while somebody has the device open.
var ErrBusy = errors.New("device is in use")

// ErrStuck is returned by Open when the device could be neither started nor
// stopped: requests are under way in storage that doesn't answer. Its images
// stay open and locked until the process ends.
var ErrStuck = errors.New("device could not be started, and its storage holds it: the images stay locked until its server has ended")

// Options are what Open needs besides the spec.
type Options struct {
	Control *ublk.Control
	Log     zerolog.Logger
	// Tag marks the device in the driver (ublksrv_flags, which the kernel keeps
	// and doesn't look at), to be known again by.
	Tag uint64
	// TakeOver: in_use marks on the images are of our own crash.
	TakeOver bool
	// Event takes what happens to the device; it must not block. nil: nobody.
	Event func(api.Event)
	// Key is the process' view of the standby check; nil: one that stays off.
	Key *standby.Switch
	// Recover takes over a device whose server is gone, instead of making one. After
	// an error it waits for a server as before. TakeOver is implied.
	Recover *Recovery
	// Known is what is known of the files already. A recovery asks the driver for the size.
	Known Known
	// Opened takes what there is to remember of the files before anything is served from
	// them, and again when others were opened. Its error undoes what was opened; nil: nobody.
	Opened func(Opened) error
	// Added hears of the driver's number of a device that is made, before anybody can
	// use it. Its error takes the creation back. nil: nobody.
	Added func(id int) error
}

// Device is a live block device.
type Device struct {
	specMu sync.Mutex // for spec.Images, which Replace changes
	spec   api.Spec
	log    zerolog.Logger
	event  func(api.Event)
	opened func(Opened) error

	tag     uint64
	control *ublk.Control
	dev     *ublk.Device
	gen     atomic.Pointer[generation]
	queues  []queue
	machine *standby.Device
	gate    *standby.Gate // machine's

	// What is done, by subject. Each is the device once more, with methods of its own.
	fast     fastPath
	slow     slowPath
	flushes  flushes
	parker   parker
	epochs   epochs
	replacer replacer
	holding  holding
	link     link

	journal                  journal
	reopenState              reopenState
	paths                    pathWatch
	changing                 chan struct{} // see lock
	liveness                 liveness
	lateCalls, lateTransfers atomic.Int64  // out in replaced stacks
	through                  atomic.Bool   // see setThrough
	ending                   atomic.Bool   // held requests fail
	failures                 atomic.Uint64 // times that held ones had to fail

	parked   atomic.Int64
	parking  parking
	closing  chan struct{} // closed by Close: fail what is parked or held
	stopping bool          // the way back is closed
	closed   bool
	stackEnd chan error     // tells the end of the images' closing
	ioErrors zerolog.Logger // log, with bursts cut

	// In nanoseconds since 1970: when requests last began to flow, to wait for
	// space, or to wait for a replacement.
	since, parkedSince, replacingSince atomic.Int64
}

// assemble makes the subjects.
func (d *Device) assemble() *Device {
	d.fast, d.slow, d.flushes, d.parker = fastPath{d}, slowPath{d}, flushes{d}, parker{d}
	d.epochs, d.replacer, d.holding, d.link = epochs{d}, replacer{d}, holding{d}, link{d}
	return d
}

// maxIO bounds one READ or WRITE, in bytes. In the copying data path each tag
// has a buffer of it.
const maxIO = 512 << 10

// Open opens the images and starts the device. When it returns, the device can
// be opened at Path.
func Open(ctx context.Context, spec api.Spec, o Options) (*Device, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	d := (&Device{
		spec: spec, control: o.Control, event: o.Event, opened: o.Opened, tag: o.Tag,
		log:      o.Log.With().Str("device", spec.Name).Logger(),
		closing:  make(chan struct{}),
		changing: make(chan struct{}, 1),
		journal:  journal{pending: make(chan struct{}, 1)},
	}).assemble()
	if d.event == nil {
		d.event = func(api.Event) {}
	}
	if d.opened == nil {
		d.opened = func(Opened) error { return nil }
	}
	if o.Key == nil {
		o.Key = standby.NewSwitch(new(atomic.Uint32))
	}
	d.ioErrors = d.log.Sample(&zerolog.BurstSampler{Burst: 5, Period: 10 * time.Second})
	r := o.Recover
	if r != nil {
		info, err := o.Control.GetInfo(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		if err := info.Is(r.Tag); err != nil {
			return nil, err
		}
		p, err := o.Control.GetParams(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		o.Known.Size = p.Size
	}
	stack, err := stack.Open(spec.Images, stack.Options{
		ReadOnly: spec.ReadOnly, Damaged: spec.Damaged, TakeOver: o.TakeOver || r != nil, Continue: r != nil && !r.Force, Distrust: r != nil && r.Standby != nil,
		Locked: o.Known.Fence || r.fenced(), Before: o.Known.Before, Size: o.Known.Size, RawSize: o.Known.RawSize,
		Log: func(format string, args ...any) { d.log.Info().Msgf(format, args...) },
	})
	if err != nil {
		return nil, noFence(damaged(err))
	}
	if err := d.replacer.recordOpened(stack); err != nil {
		if r != nil {
			stack.Abandon() // still in use
			return nil, err
		}
		return nil, errors.Join(err, stack.Close())
	}
	failpoint.Hit("recover-locked")
	if err := d.link.start(ctx, stack, &o); err != nil {
		close(d.closing)
		d.parker.endParking()
		if d.machine != nil {
			d.machine.Close()
		}
		if d.dev != nil && !d.link.ended() {
			return nil, fmt.Errorf("%w: %w", ErrStuck, err)
		}
		if r != nil {
			stack.Abandon() // still in use
			return nil, err
		}
		return nil, errors.Join(err, stack.Close())
	}
	if r != nil {
		failpoint.Hit("recover-ended")
		d.emit(api.EventServed, "%s is served again, from %s", d.Path(), spec.Images[len(spec.Images)-1])
	} else {
		d.emit(api.EventCreated, "%s serves %s", d.Path(), spec.Images[len(spec.Images)-1])
	}
	return d, nil
}

// damaged adds what to do about images that can't be served as they are.
func damaged(err error) error {
	if errors.Is(err, ploop.ErrCorrupt) {
		return fmt.Errorf("%w ('holdfast image check' tells more; with --read-only --damaged a device is made of what is left)", err)
	}
	return err
}

func (d link) start(ctx context.Context, stack *stack.Stack, o *Options) error {
	cfg := d.config(stack)
	if cfg.Size%int64(cfg.LogicalBlock) != 0 {
		return fmt.Errorf("device %s: %w: a disk of %d bytes is no multiple of the logical block size %d", d.spec.Name, ploop.ErrGeometry, cfg.Size, cfg.LogicalBlock)
	}
	if o.Recover != nil {
		info, err := d.control.GetInfo(ctx, o.Recover.ID)
		if err != nil {
			return err
		}
		cfg.Queues, cfg.Depth, cfg.MaxIO = info.Queues, info.Depth, info.MaxIO
	}
	// As many as may be; the driver may give fewer.
	d.queues = make([]queue, cfg.Queues)
	startClock()
	g := newGeneration(stack, cfg.Queues)
	d.gen.Store(g)
	for i := range d.queues {
		q := &d.queues[i]
		q.adopt(g, i)
		q.born = time.Now()
		q.makeTags(cfg.Depth)
	}
	set, err := api.Triggers(d.spec.StandbyErrors)
	if err != nil {
		return err
	}
	if err := d.connect(ctx, cfg, o); err != nil {
		return errors.Join(err, d.disconnect(ctx, o))
	}
	for slot, fd := range stack.Fds() {
		if err := d.dev.SetFile(slot, fd); err != nil {
			return errors.Join(err, d.disconnect(ctx, o))
		}
	}
	d.machine = standby.NewDevice(o.Key, standby.Options{Triggers: set, Changed: d.holding.changed})
	d.gate = d.machine.Gate()
	d.holding.flowing()
	if o.Recover != nil {
		d.restore(o.Recover)
	}
	go d.holding.keep()
	go d.watchEnd()
	return d.dev.Start(ctx) // which stops or leaves the device when it fails
}

// config says the device's parameters from spec and stack.
func (d link) config(stack *stack.Stack) ublk.Config {
	st := stack.Status()
	cfg := ublk.Config{
		ID:            -1,
		Queues:        d.spec.Queues,
		Depth:         d.spec.Depth,
		MaxIO:         maxIO,
		Size:          st.Size,
		LogicalBlock:  max(d.spec.LogicalBlockSize, ploop.SectorSize),
		ReadOnly:      st.ReadOnly,
		VolatileCache: !st.ReadOnly,
		FUA:           !st.ReadOnly,
		Files:         len(st.Images),
		DataPath:      dataPaths[d.spec.DataPath],
		Tag:           d.tag,
		Recovery:      recoveryOf(),
	}
	if cfg.Queues == 0 {
		cfg.Queues = min(runtime.NumCPU(), mostDefaultQueue)
	}
	if cfg.Depth == 0 {
		cfg.Depth = defaultDepth
	}
	if c := st.ClusterSize; c&(c-1) == 0 && c >= int64(unix.Getpagesize()) {
		// One request is one cluster, and can go the fast way.
		cfg.ChunkSectors = int(c / ploop.SectorSize)
		cfg.IOOpt = int(min(c, maxIO))
	}
	cfg.DMAAlign = int(stack.MemoryUnit())
	if !st.ReadOnly {
		cfg.WriteZeroes = true
		cfg.DiscardGranularity = granularity(stack.DiscardUnit(), cfg.LogicalBlock)
	}
	return cfg
}

// granularity is the smallest multiple of unit that is also one of the logical block; 0: no
// discards.
func granularity(unit int64, block int) int {
	n := unit
	for n%int64(block) != 0 {
		n += unit
	}
	return int(n)
}

// Spec is what the device was made from, with the images that it has now.
func (d *Device) Spec() api.Spec {
	d.specMu.Lock()
	defer d.specMu.Unlock()
	return d.spec
}

// ID is the driver's number of the device.
func (d *Device) ID() int { return d.dev.ID() }

// Path is the block device, /dev/ublkbN.
func (d *Device) Path() string { return d.dev.Path() }

// emit logs an event, and hands it to the owner.
func (d *Device) emit(kind, format string, args ...any) {
	e := api.Event{Time: time.Now(), Device: d.spec.Name, Kind: kind, Message: fmt.Sprintf(format, args...)}
	d.log.Info().Str("event", kind).Msg(e.Message)
	d.event(e)
}

// Close removes the device: it is stopped, the images are flushed and closed
// cleanly. Without force that happens only if nobody has it open, else ErrBusy
// is the answer and nothing has changed. With force, requests under way are
// finished and parked ones fail with EIO.
//
// When ctx ends before the requests under way do, the images stay as they are,
// and Close may be called again. After another error the block device is gone,
// but an image could not be closed cleanly; its in_use is still set.
func (d *Device) Close(ctx context.Context, force bool) error {
	if err := d.lock(ctx); err != nil {
		return err
	}
	defer d.unlock()
	if d.closed {
		return nil
	}
	if !d.stopping {
		if !force {
			if err := d.link.claim(ctx); err != nil {
				return err
			}
		}
		d.stopping = true
		close(d.closing)
		d.parker.endParking()
		d.holding.endHolds()
	}
	stopErr := d.dev.Stop(ctx)
	if stopErr != nil && !d.link.ended() {
		// Requests may still be under way: the images stay open and locked.
		return fmt.Errorf("device %s (%s): stop: %w", d.spec.Name, d.Path(), stopErr)
	}
	// Storage that is dead may keep the images' last writes for ever.
	if d.stackEnd == nil {
		d.stackEnd = make(chan error, 1)
		go func() { d.stackEnd <- d.gen.Load().stack.Close() }()
	}
	var closeErr error
	select {
	case closeErr = <-d.stackEnd:
	case <-ctx.Done():
		return fmt.Errorf("device %s: its images don't close: %w", d.spec.Name, ctx.Err())
	}
	d.closed = true
	d.machine.Close()
	err := errors.Join(stopErr, closeErr)
	d.emit(api.EventRemoved, "%s is gone", d.Path())
	return err
}

// ended says that the queues have given every request back.
func (d link) ended() bool {
	select {
	case <-d.dev.Done():
		return true
	default:
		return false
	}
}

// claim asks the kernel whether anybody has the device open. Where the driver
// can stop it in the same breath (Linux 7.0) nobody comes in between.
func (d link) claim(ctx context.Context) error {
	err := d.control.TryStop(ctx, d.ID())
	switch {
	case errors.Is(err, unix.EBUSY):
		return ErrBusy
	case err == nil:
		return nil
	}
	fd, err := unix.Open(d.Path(), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return ErrBusy
	}
	if err == nil {
		unix.Close(fd)
	}
	return nil
}
