package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"holdfast/api"
	"holdfast/internal/failpoint"
	"holdfast/ploop"
	"holdfast/server/device"
	"holdfast/state"
	"holdfast/ublk"
)

// How a recovery is tried: each attempt has a bound, once the images have answered, and the pause
// between two doubles from the first to the longest. A lock that is held is tried more often: it is
// the fence, and opens when the last write of the dead server has landed.
const (
	recoverTime      = 10 * time.Second
	firstRecoverWait = 20 * time.Millisecond
	lastRecoverWait  = 2 * time.Second
	lockWait         = 100 * time.Millisecond
)

// A recovery has its server become that of a device which the driver has, and which waits for one:
// all that can be done with it until then.
type recovery struct {
	*Server
	unreleasedSince time.Time // of the turn's holder; zero: it isn't
}

// lookup finds out what the driver has of the device of the record, and deletes what is dead.
func (r *recovery) lookup() leftover {
	disk := r.disk(r.rec)
	if r.rec.BootID != r.boot || disk.ID < 0 {
		return leftNothing
	}
	ctx, cancel := context.WithTimeout(r.alive, recoverTime)
	defer cancel()
	found, err := r.kernel.left(ctx, disk)
	if err != nil {
		r.log.Error().Err(err).Msg("what the driver has of the device is not known")
		return leftWaiting // trying tells
	}
	if found == leftDead {
		// What stays is dead, and only takes up a number.
		if err := r.kernel.delete(ctx, disk); err != nil {
			r.log.Warn().Msgf("the kernel keeps the dead device %v: %v", disk, err)
		}
	}
	return found
}

// keepTrying tries until the device is served, or there is nothing to recover any more.
func (r *recovery) keepTrying(ctx context.Context) {
	begin, wait := time.Now(), firstRecoverWait
	for {
		err := r.attemptUnlessHung(ctx)
		if err == nil || ctx.Err() != nil || api.CodeOf(err) == api.CodeNotFound {
			return
		}
		rec := r.record()
		if rec == nil {
			return // it was given up
		}
		if rec.Spec.RecoverPolicy == api.RecoverFail && time.Since(begin) > recoverTimeout(&rec.Spec) {
			r.failIOInTurn(ctx)
		}
		pause := wait
		if errors.Is(err, ploop.ErrLocked) {
			pause = min(pause, lockWait)
		}
		select {
		case <-time.After(pause):
			wait = min(2*wait, lastRecoverWait)
		case <-ctx.Done():
			return
		}
	}
}

func recoverTimeout(spec *api.Spec) time.Duration {
	if t := time.Duration(spec.RecoverTimeout); t > 0 {
		return t
	}
	return api.DefaultRecoverTimeout
}

// attemptUnlessHung makes one attempt, but while the storage of the device's images owes an answer:
// to wait for that would only keep the turn from others, as from who gives the device another file.
func (r *recovery) attemptUnlessHung(ctx context.Context) error {
	if rec := r.record(); rec != nil {
		if err := r.inspections.unanswered(refs(rec.Spec.Images)); err != nil {
			r.notYet(err)
			return err
		}
	}
	return r.attempt(ctx, false)
}

// attempt makes one attempt. CodeNotFound: there is nothing to recover.
func (r *recovery) attempt(ctx context.Context, force bool) error {
	end, err := r.turn.take(ctx)
	if err != nil {
		return err
	}
	defer end()
	r.mu.Lock()
	waits := r.phase == Recovering
	r.mu.Unlock()
	if !waits {
		return api.Errorf(api.CodeNotFound, "device %q does not wait for a server", r.name)
	}
	return r.try(ctx, force)
}

// try does the work, with the turn held.
func (r *recovery) try(ctx context.Context, force bool) error {
	r.mu.Lock()
	rec, failing := *r.rec, r.failing
	r.mu.Unlock()
	err := r.takeOver(ctx, &rec, failing, force)
	if err == nil || ctx.Err() != nil {
		return err
	}
	// A file of another size is not the device's fault: it waits for the right one.
	if errors.Is(err, ublk.ErrNoDevice) || errors.Is(err, ublk.ErrNotRecoverable) && !errors.Is(err, ublk.ErrOtherDisk) {
		r.become(Lost, "it can't be recovered: "+err.Error())
		if rec.Spec.Persist {
			r.creation.again()
		}
		r.emit(api.EventRecoverFailed, "the device is lost: %v", err)
		return api.Errorf(api.CodeNotFound, "device %q: %w", r.name, err)
	}
	if errors.Is(err, device.ErrNoFence) {
		err = fmt.Errorf("%w: 'holdfast recover --force %s'", err, r.name)
	}
	// The images' locks may hang by the same reference.
	unreleased := r.kernel.unreleased(ctx, r.disk(&rec))
	if is := errors.Is(err, ublk.ErrUnreleased); is || r.longUnreleased(unreleased) {
		text := unreleasedText(rec.ID, r.kernel.holders(rec.ID))
		if is {
			err = fmt.Errorf("%w: %s", ublk.ErrUnreleased, text)
		} else {
			err = fmt.Errorf("%w: %s (%w)", ublk.ErrUnreleased, text, err)
		}
	}
	r.notYet(err)
	e := classify(err)
	return api.Errorf(e.Code, "device %q can't be recovered now: %w", r.name, err)
}

// notYet says what keeps the device from being recovered.
func (r *recovery) notYet(err error) {
	news := false
	r.set(func() {
		if r.phase != Recovering {
			return
		}
		news = r.problem != err.Error()
		r.problem, r.unreleased = err.Error(), errors.Is(err, ublk.ErrUnreleased)
	})
	if news {
		r.emit(api.EventRecoverFailed, "not yet: %v", err)
	}
}

// takeOver becomes the device's server.
func (r *recovery) takeOver(ctx context.Context, rec *state.Record, failing failing, force bool) error {
	if err := r.inspectImages(ctx, rec, force); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, recoverTime)
	defer cancel()
	if failing != nil {
		if err := failing.Leave(ctx); err != nil && !errors.Is(err, ublk.ErrStopped) {
			return err
		}
		r.set(func() { r.failing = nil })
	}
	leases := append(slices.Clone(rec.Leases), rec.TargetLeases...)
	dev, err := r.kernel.open(ctx, rec.Spec, openOptions{takeOver: true, sw: r.sw, event: r.event, known: knownOf(rec), opened: r.opened,
		recover: &device.Recovery{ID: rec.ID, Tag: uint64(r.disk(rec).Tag), Consumers: leases, Standby: restored(rec.Standby), Left: rec.Left, Force: force}})
	if err != nil {
		if failing != nil {
			r.failIO(ctx) // as before
		}
		return err
	}
	failpoint.Hit("recover-recorded")
	r.set(func() { r.dev, r.phase, r.problem, r.unreleased = dev, Serving, "", false })
	if err := r.ledger.recordChange(func(rec *state.Record) {
		rec.PID, rec.BootID, rec.Left = os.Getpid(), r.boot, false
		rec.Standby = recordStandby(dev.Restored())
	}); err != nil {
		// The copy has it, or the next server sees for itself.
		r.log.Warn().Err(err).Msg("the record is not up to date")
	}
	return nil
}

// inspectImages sees whether the images answer, and are what they were, before anything is done
// that could hang with their storage for longer. It claims them.
func (r *recovery) inspectImages(ctx context.Context, rec *state.Record, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, r.times.inspect)
	defer cancel()
	came := make(chan []state.ClaimedFile, 1)
	err := r.inspections.inspect(ctx, rec.Spec.Images, func() error {
		err := changed(rec, r.boot, true)
		if notTheFile(err) && !force {
			return fmt.Errorf("%w; if it is the one, or is meant to be, 'holdfast recover --force %s' takes it as it is", err, r.name)
		}
		if err != nil && !notTheFile(err) {
			return err
		}
		files, err := claimedFiles(&rec.Spec)
		if err != nil {
			return err
		}
		came <- files
		return device.Probe(rec.Spec.Images)
	})
	if err != nil {
		return err
	}
	return r.claims.change(<-came)
}

// failIOInTurn is failIO with the turn taken.
func (r *recovery) failIOInTurn(ctx context.Context) {
	end, err := r.turn.take(ctx)
	if err != nil {
		return
	}
	defer end()
	r.failIO(ctx)
}

// failIO has the device's I/O fail until it is recovered. The turn is held.
func (r *recovery) failIO(ctx context.Context) {
	r.mu.Lock()
	if r.rec == nil || r.failing != nil || r.phase != Recovering {
		r.mu.Unlock()
		return
	}
	disk := r.disk(r.rec)
	r.mu.Unlock()
	f, err := r.kernel.fail(ctx, disk)
	if err != nil {
		r.log.Error().Err(err).Msg("the device's I/O waits, and can't be failed")
		return
	}
	r.set(func() { r.failing = f })
	r.emit(api.EventRecoverFailed, "I/O of the device fails from now on, until it is recovered (recover policy fail)")
}

// Recover tries to recover the device now. With force it goes on where the image's file
// system has no locks that could tell whether writes of the dead server are under way.
func (s *Server) Recover(ctx context.Context, force bool) (*api.Device, error) {
	s.mu.Lock()
	rec, dev, phase := s.rec, s.dev, s.phase
	s.mu.Unlock()
	switch {
	case rec == nil:
		return nil, api.Errorf(api.CodeNotFound, "there is no device %q", s.name)
	case dev != nil:
		return nil, api.Errorf(api.CodeConflict, "device %q is served", s.name)
	case phase != Recovering:
		return nil, api.Errorf(api.CodeConflict, "device %q has nothing left in the driver to be recovered: create or remove it", s.name)
	}
	if err := s.recovery.attempt(ctx, force); err != nil {
		return nil, err
	}
	return s.Device(), nil
}
