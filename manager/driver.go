package manager

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/internal/ublkctl"
	"holdfast/state"
	"holdfast/ublk"
)

// driver is what a manager asks of the kernel's driver. There are two: this machine's, and the
// tests'.
type driver interface {
	// ready is nil when devices can be made, else what is missing. It tries
	// anew each time, so that a modprobe needs no restart of the manager.
	ready() error
	// has says whether it has a record's device, which waits, or will, for a server.
	has(ctx context.Context, rec *state.Record) (bool, error)
	// ours are all devices of servers of this state directory.
	ours(ctx context.Context) ([]state.Disk, error)
	// delete takes one of these away, whose server is gone.
	delete(ctx context.Context, d state.Disk) error
	// timeoutAttr is what is to be written where, so that a server's death is noticed soon;
	// path "": nothing is.
	timeoutAttr(ctx context.Context, id int) (path, value string, err error)
	close()
}

var _ driver = (*kernelDriver)(nil)

// kernelDriver is the machine's.
type kernelDriver struct {
	stateDir string
	opener   ublkctl.Opener
}

func (k *kernelDriver) ready() error {
	return k.opener.Ready()
}

// waits says of a device that it can be taken over once its server is gone.
func waits(info ublk.Info) bool {
	return info.State != ublk.Dead && info.Flags.Has(ublk.FeatureUserRecovery)
}

func (k *kernelDriver) has(ctx context.Context, rec *state.Record) (bool, error) {
	ctl, err := k.opener.Control()
	if errors.Is(err, ublk.ErrNoDriver) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	info, err := ctl.GetInfo(ctx, rec.ID)
	if errors.Is(err, ublk.ErrNoDevice) {
		return false, nil
	}
	return err == nil && state.Tag(info.Tag) == rec.Disk(k.stateDir).Tag && waits(info), err
}

func (k *kernelDriver) ours(ctx context.Context) ([]state.Disk, error) {
	ctl, err := k.opener.Control()
	if errors.Is(err, ublk.ErrNoDriver) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ids, err := ctl.List()
	if err != nil {
		return nil, err
	}
	var found []state.Disk
	for _, id := range ids {
		info, e := ctl.GetInfo(ctx, id)
		switch {
		case errors.Is(e, ublk.ErrNoDevice):
		case e != nil:
			err = errors.Join(err, e)
		case state.Tag(info.Tag).Of(k.stateDir) && waits(info):
			found = append(found, state.Disk{ID: id, Tag: state.Tag(info.Tag)})
		}
	}
	return found, err
}

// deletePoll is how often the driver is asked whether it has heard of a server's end, which it
// does when the last reference to the server's files is gone: that can be after the process is.
const deletePoll = 50 * time.Millisecond

func (k *kernelDriver) delete(ctx context.Context, d state.Disk) error {
	ctl, err := k.opener.Control()
	if err != nil {
		return err
	}
	for {
		info, err := ctl.GetInfo(ctx, d.ID)
		switch {
		case errors.Is(err, ublk.ErrNoDevice):
			return nil
		case err != nil:
			return err
		case state.Tag(info.Tag) != d.Tag:
			return fmt.Errorf("it is another device by now")
		case info.State != ublk.Live:
			if err := ctl.Delete(ctx, d.ID); err != nil && !errors.Is(err, ublk.ErrNoDevice) {
				return err
			}
			return nil
		case !info.Unreleased():
			return fmt.Errorf("process %d serves it", info.ServerPID)
		}
		select {
		case <-time.After(deletePoll):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ublk.ErrUnreleased, ctx.Err())
		}
	}
}

func (k *kernelDriver) timeoutAttr(ctx context.Context, id int) (path, value string, err error) {
	ctl, err := k.opener.Control()
	if err != nil {
		return "", "", err
	}
	return ctl.TimeoutAttr(ctx, id)
}

func (k *kernelDriver) close() { k.opener.Close() }
