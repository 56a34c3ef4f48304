package device

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/failpoint"
	"holdfast/ploop/stack"
	"holdfast/standby"
	"holdfast/ublk"
)

// Recovery says what there is to know of a device whose server died, or left it.
type Recovery struct {
	ID        int               // the driver's number
	Tag       uint64            // its mark there; a device with another one is not the one
	Consumers []string          // who had a lease
	Standby   *standby.Restored // the standby it was in; nil: none
	// Left: the server left the device in order, with nothing under way.
	Left bool
	// Force goes on where nothing tells that no write of the dead server is under way, and
	// with a top that it has not left in use.
	Force bool
}

// ErrNoFence is returned by Open when nothing can tell whether writes of the dead server are
// still on their way.
var ErrNoFence = errors.New("writes of the dead server may still be under way, and nothing tells")

// link is the device's connection to the driver.
type link struct{ *Device }

// connect makes the device in the driver, or takes it over.
func (d link) connect(ctx context.Context, cfg ublk.Config, o *Options) (err error) {
	if r := o.Recover; r != nil {
		cfg.Tag = r.Tag
		d.dev, err = d.control.Recover(ctx, r.ID, cfg, d.fast)
		return err
	}
	if d.dev, err = d.control.Create(ctx, cfg, d.fast); err != nil || o.Added == nil {
		return err
	}
	return o.Added(d.dev.ID())
}

// disconnect undoes connect: what was made is removed, what was taken over is left.
func (d link) disconnect(ctx context.Context, o *Options) error {
	if d.dev == nil {
		return nil
	}
	if o.Recover != nil {
		return d.dev.Leave(context.WithoutCancel(ctx))
	}
	return d.dev.Stop(context.WithoutCancel(ctx))
}

// fenced says whether the fence is wanted before a dead server's device is served again: the
// lock on the top, which its writes would hold as long as one of them is under way.
func (r *Recovery) fenced() bool {
	return r != nil && !r.Left && !r.Force && !failpoint.Off("no-fence")
}

// noFence says what to do where there is none.
func noFence(err error) error {
	if !errors.Is(err, stack.ErrNoLock) && !errors.Is(err, stack.ErrLocalLock) {
		return err
	}
	return fmt.Errorf("%w; %w: make sure of it (the old mount is gone, and so is whoever served it) and force it", err, ErrNoFence)
}

// recoveryOf is what the driver is to do when the server dies.
func recoveryOf() ublk.Recovery {
	switch {
	case failpoint.Off("no-recovery"):
		return ublk.NoRecovery
	case failpoint.Off("no-reissue"):
		return ublk.RecoverWait
	}
	return ublk.RecoverReissue
}

// Restored is what another server needs to go on with the device's standby; nil: it is
// in none.
func (d *Device) Restored() *standby.Restored {
	m := d.machine.Status()
	if !m.Flag {
		return nil
	}
	return &standby.Restored{ByHand: m.ByHand, Errno: m.Errno, Cause: m.Cause, Since: m.Since}
}

// Leave gives the device up for another server, without its users noticing more than a
// pause: what is under way is finished, what is held or comes later is left to the
// other one, and the images are closed with the marks that they are in use.
//
// When requests are still under way after drain, or another change of the files is,
// nothing has changed. After any other error a queue hangs, which takes a bug, and
// the device waits for the end of this process.
func (d *Device) Leave(ctx context.Context, drain time.Duration) error {
	turn, cancel := context.WithTimeout(ctx, drain)
	defer cancel()
	if err := d.lock(turn); err != nil {
		return err
	}
	defer d.unlock()
	if d.closed || d.stopping {
		return errRemoved
	}
	d.machine.Hold(standby.Leave)
	old := d.gen.Load()
	if err := d.link.emptyStack(ctx, drain); err != nil {
		// What was declared late stays so. What was not is still this generation's: the next
		// one to replace it has to find it there.
		if old.isOver() {
			err = errors.Join(err, d.epochs.adopt(&generation{stack: old.stack, readers: old.readers}))
		}
		d.machine.Release(standby.Leave)
		return err
	}
	d.stopping, d.closed = true, true
	// There is no way back from here, whatever is left of ctx.
	if err := d.dev.Leave(context.WithoutCancel(ctx)); err != nil && !d.link.ended() {
		return fmt.Errorf("device %s (%s): leave: %w; its I/O waits until this server has ended", d.spec.Name, d.Path(), err)
	} else if err != nil {
		d.log.Warn().Err(err).Msg("the device was left, but not all was given back")
	}
	old.stack.Abandon()
	close(d.closing)
	d.machine.Close()
	return nil
}

// emptyStack waits, with the gate closed, until nothing uses the stack, and sees that
// nothing begins to.
func (d link) emptyStack(ctx context.Context, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	out, err := d.epochs.drain(ctx, limit)
	if err != nil {
		return err
	}
	// Those who waited for space might begin anew.
	if out == 0 {
		err = d.epochs.declareLate()
	}
	for err == nil && !d.replacer.drained() && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	if out += int(d.lateCalls.Load() + d.lateTransfers.Load()); err == nil && out > 0 {
		err = fmt.Errorf("device %s: %d requests are under way in its storage, which doesn't answer", d.spec.Name, out)
	}
	return err
}

// A Failing device is one that can't be served: all of its I/O ends with EIO.
type Failing struct{ dev *ublk.Device }

var _ ublk.Handler = (*Failing)(nil)

// Fail takes over the device of that number and mark, whose server died, to fail its I/O.
func Fail(ctx context.Context, c *ublk.Control, id int, tag uint64) (*Failing, error) {
	p, err := c.GetParams(ctx, id)
	if err != nil {
		return nil, err
	}
	f := new(Failing)
	cfg := ublk.Config{Size: p.Size, LogicalBlock: p.LogicalBlock, ReadOnly: p.ReadOnly, Tag: tag, Recovery: ublk.RecoverReissue}
	if f.dev, err = c.Recover(ctx, id, cfg, f); err != nil {
		return nil, err
	}
	return f, f.dev.Start(ctx)
}

// Begin fails a request.
func (f *Failing) Begin(r *ublk.Request) { r.CompleteHere(unix.EIO) }

// Transferred is never called.
func (f *Failing) Transferred(r *ublk.Request, _ unix.Errno) { r.CompleteHere(unix.EIO) }

// Leave gives the device up for one that serves it.
func (f *Failing) Leave(ctx context.Context) error { return f.dev.Leave(ctx) }

// Stop removes the device.
func (f *Failing) Stop(ctx context.Context) error { return f.dev.Stop(ctx) }

// restore gives the machine what an earlier server knew, before there are requests.
func (d link) restore(r *Recovery) {
	for _, c := range slices.Compact(slices.Sorted(slices.Values(r.Consumers))) {
		_ = d.machine.Attach(c) // nobody has one yet
	}
	if r.Standby != nil {
		d.machine.Restore(*r.Standby)
	}
}
