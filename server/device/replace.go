package device

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast/api"
	"holdfast/internal/failpoint"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/standby"
)

// Replace says which file is to be replaced by which.
type Replace struct {
	Level int // 0 is the base; -1: the top
	Image ploop.ImageRef
	// Force takes the file although it is not what the device had there, and
	// although writes to the old file may still be in flight: the caller says
	// that these can't land any more.
	Force bool
	// Drain bounds the wait for requests under way in the old file; 0:
	// api.DefaultDrain. Those that are still out then are done anew afterwards.
	Drain time.Duration
	// Commit makes the changed spec durable. It is called once, when everything
	// was checked and before anything is served from the new file; its error
	// undoes the replacement. nil: nothing to do.
	Commit func(api.Spec) error
	// Opened takes what there is to remember of the new file, just before Commit; nil:
	// nobody.
	Opened func(Opened)
}

// changeTime is how long Replace waits for another change of the files.
const changeTime = 30 * time.Second

// errRemoved is returned by calls on a device that is being closed, or was left.
var errRemoved = errors.New("device is being removed")

// Replace puts another file in the place of one of the device's, while its users wait.
// The new one is checked to be the old one continued (stack.Handover), or taken
// as it is with Force. When the top was replaced, or what a standby waited for, a
// standby ends and what was held is served. After an error everything is as it was.
//
// Nothing is ever written to the old file any more, not even that it is no longer in use.
func (d *Device) Replace(ctx context.Context, r Replace) error {
	// An attempt to reopen may hang in its storage, and must not keep the one who
	// could help from being told so.
	turn, cancel := context.WithTimeout(ctx, changeTime)
	defer cancel()
	if err := d.lock(turn); err != nil {
		return err
	}
	defer d.unlock()
	err := d.replacer.replace(ctx, r)
	d.reopenState.replaced(err)
	if err != nil {
		d.emit(api.EventReplaceFailed, "%v", err)
	}
	return err
}

// replacer puts other files in the place of those that are served, or opens the same ones anew.
type replacer struct{ *Device }

func (d replacer) replace(ctx context.Context, r Replace) error {
	spec := d.Spec()
	top := len(spec.Images) - 1
	if r.Level < 0 {
		r.Level = top
	}
	if r.Level > top {
		return fmt.Errorf("device %s: level %d: its top is level %d", spec.Name, r.Level, top)
	}
	spec.Images = slices.Clone(spec.Images)
	was := spec.Images[r.Level]
	spec.Images[r.Level] = r.Image
	if err := spec.Validate(); err != nil {
		return err
	}
	// Before anybody waits for it.
	if err := d.probe("replace", []ploop.ImageRef{r.Image}); err != nil {
		return fmt.Errorf("device %s: the new image can't be used: %w", spec.Name, err)
	}
	if r.Drain == 0 {
		r.Drain = api.DefaultDrain
	}
	reopen := make([]bool, len(spec.Images))
	reopen[r.Level] = true
	err := d.succeed(ctx, succession{images: spec.Images, reopen: reopen, force: r.Force, drain: r.Drain, replaced: r.Level, resume: d.machine.Resume,
		commit: func(o Opened) error {
			if r.Opened != nil {
				r.Opened(o)
			}
			if r.Commit == nil {
				return nil
			}
			return r.Commit(spec)
		}})
	if err != nil {
		return err
	}
	d.emit(api.EventReplaced, "level %d is %s now, and was %s", r.Level, r.Image, was)
	return nil
}

// succession is a change of the files of a device.
type succession struct {
	images []ploop.ImageRef
	reopen []bool
	force  bool
	drain  time.Duration
	commit func(Opened) error
	// replaced is the level of the file that is another one; -1: none is.
	replaced int
	// resume ends the standby.
	resume func() bool
}

// succeed makes the change, with d.lock held: hold, drain, check, make it durable,
// swap, release. It ends a standby if the top was opened anew.
func (d replacer) succeed(ctx context.Context, c succession) (err error) {
	select {
	case <-d.closing:
		return errRemoved
	default:
	}
	d.replacingSince.Store(time.Now().UnixNano())
	d.machine.Hold(standby.Replace)
	swapping := false
	defer func() {
		if swapping {
			// What began now would find neither the old stack nor the new one. The
			// handover stays open, since nobody knows which of them the queues have.
			return
		}
		if errors.Is(err, stack.ErrHandover) {
			return // that is how an earlier change has ended
		}
		if errors.Is(err, stack.ErrLockLost) {
			// Somebody else may write to the image: better nobody of ours does,
			// until a file was put there that we have for ourselves.
			return
		}
		d.holding.flowing()
		d.machine.Release(standby.Replace)
	}()
	if _, err := d.epochs.drain(ctx, c.drain); err != nil {
		return err
	}
	old := d.gen.Load()
	if err := d.epochs.declareLate(); err != nil {
		return errors.Join(err, d.epochs.adopt(&generation{stack: old.stack, readers: old.readers}))
	}
	handover, next, err := d.prepare(old, c)
	if err != nil {
		// The old stack goes on, under a generation of its own, as what was
		// declared late stays so.
		return errors.Join(err, d.epochs.adopt(&generation{stack: old.stack, readers: old.readers}))
	}
	swapping = true
	if err := d.swap(next, c.reopen); err != nil {
		return fmt.Errorf("%w: the device holds its requests from now; what is left is to restart its server, or to remove the device", err)
	}
	swapping = false
	if len(next.Earlier()) > 0 {
		go d.awaitLate(d.gen.Load())
	}
	failpoint.Hit("replace-swapped")
	d.specMu.Lock()
	d.spec.Images = c.images
	d.specMu.Unlock()
	if err := handover.Commit(); err != nil {
		d.log.Error().Err(err).Msg("the old files could not be given up") // prepare has seen to it
	}
	if c.replaced >= 0 {
		d.machine.Replaced(c.replaced)
	}
	if c.reopen[len(c.reopen)-1] {
		c.resume()
	}
	return nil
}

// prepare makes the next stack and the record of it. After an error the old one goes on.
func (d replacer) prepare(old *generation, c succession) (_ *stack.Handover, next *stack.Stack, err error) {
	handover, err := old.stack.BeginHandover()
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, handover.Abort())
		}
	}()
	// Writes of the index that have not come back are Prepare's matter.
	next, err = handover.Prepare(stack.Succession{Refs: c.images, Reopen: c.reopen, Force: c.force, Drained: d.drained()})
	if err != nil {
		return nil, nil, err
	}
	failpoint.Hit("replace-prepared")
	o, err := d.remember(next, c.reopen, true)
	if err == nil {
		err = c.commit(o)
	}
	if err != nil {
		return nil, nil, err
	}
	failpoint.Hit("replace-committed")
	return handover, next, nil
}

// drained says that no request is out in a stack that was superseded, this one or one
// before it.
func (d replacer) drained() bool { return d.lateCalls.Load()+d.lateTransfers.Load() == 0 }

// swap has the queues use the next stack.
func (d replacer) swap(next *stack.Stack, changed []bool) error {
	for slot, fd := range next.Fds() {
		if changed[slot] {
			if err := d.dev.SetFile(slot, fd); err != nil {
				return err
			}
		}
	}
	return d.epochs.adopt(newGeneration(next, len(d.queues)))
}
