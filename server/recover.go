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

// How a recovery is tried: each attempt has a bound, and the pause between two doubles
// from the first to the longest. A lock that is held is tried more often: it is the
// fence, and opens when the last write of the dead server has landed.
const (
	recoverTime      = 10 * time.Second
	firstRecoverWait = 20 * time.Millisecond
	lastRecoverWait  = 2 * time.Second
	lockWait         = 100 * time.Millisecond
)

// lookup finds out what the driver has of the device of the record, and deletes what is dead.
func (s *Server) lookup() leftover {
	disk := s.disk(s.rec)
	if s.rec.BootID != s.boot || disk.ID < 0 {
		return leftNothing
	}
	ctx, cancel := context.WithTimeout(s.alive, recoverTime)
	defer cancel()
	found, err := s.kernel.left(ctx, disk)
	if err != nil {
		s.log.Error().Err(err).Msg("what the driver has of the device is not known")
		return leftWaiting // trying tells
	}
	if found == leftDead {
		// What stays is dead, and only takes up a number.
		if err := s.kernel.delete(ctx, disk); err != nil {
			s.log.Warn().Msgf("the kernel keeps the dead device %v: %v", disk, err)
		}
	}
	return found
}

// recoverAgain tries until the device is served, or there is nothing to recover any more.
func (s *Server) recoverAgain(ctx context.Context) {
	begin, wait := time.Now(), firstRecoverWait
	for {
		err := s.recoverNow(ctx, false)
		if err == nil || ctx.Err() != nil || api.CodeOf(err) == api.CodeNotFound {
			return
		}
		rec := s.record()
		if rec == nil {
			return // it was given up
		}
		if rec.Spec.RecoverPolicy == api.RecoverFail && time.Since(begin) > recoverTimeout(&rec.Spec) {
			s.failLeft(ctx)
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

// recoverNow makes one attempt. CodeNotFound: there is nothing to recover.
func (s *Server) recoverNow(ctx context.Context, force bool) error {
	end, err := s.turn.take(ctx)
	if err != nil {
		return err
	}
	defer end()
	s.mu.Lock()
	waits := s.phase == Recovering
	s.mu.Unlock()
	if !waits {
		return api.Errorf(api.CodeNotFound, "device %q does not wait for a server", s.name)
	}
	return s.tryRecovery(ctx, force)
}

// tryRecovery does the work, with the turn held.
func (s *Server) tryRecovery(ctx context.Context, force bool) error {
	s.mu.Lock()
	rec, failing := *s.rec, s.failing
	s.mu.Unlock()
	err := s.takeOver(ctx, &rec, failing, force)
	if err == nil || ctx.Err() != nil {
		return err
	}
	// A file of another size is not the device's fault: it waits for the right one.
	if errors.Is(err, ublk.ErrNoDevice) || errors.Is(err, ublk.ErrNotRecoverable) && !errors.Is(err, ublk.ErrOtherDisk) {
		s.become(Lost, "it can't be recovered: "+err.Error())
		if rec.Spec.Persist {
			s.again()
		}
		s.tell(api.EventRecoverFailed, "the device is lost: %v", err)
		return api.Errorf(api.CodeNotFound, "device %q: %w", s.name, err)
	}
	if errors.Is(err, device.ErrNoFence) {
		err = fmt.Errorf("%w: 'holdfast recover --force %s'", err, s.name)
	}
	// The images' locks may hang by the same reference.
	unreleased := s.kernel.unreleased(ctx, s.disk(&rec))
	if is := errors.Is(err, ublk.ErrUnreleased); is || s.longUnreleased(unreleased) {
		text := unreleasedText(rec.ID, s.kernel.holders(rec.ID))
		if is {
			err = fmt.Errorf("%w: %s", ublk.ErrUnreleased, text)
		} else {
			err = fmt.Errorf("%w: %s (%w)", ublk.ErrUnreleased, text, err)
		}
	}
	news := false
	s.set(func() {
		news = s.problem != err.Error()
		s.problem, s.unreleased = err.Error(), errors.Is(err, ublk.ErrUnreleased)
	})
	if news {
		s.tell(api.EventRecoverFailed, "not yet: %v", err)
	}
	e := classify(err)
	return api.Errorf(e.Code, "device %q can't be recovered now: %w", s.name, err)
}

// takeOver becomes the device's server.
func (s *Server) takeOver(ctx context.Context, rec *state.Record, failing failing, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTime)
	defer cancel()
	if err := s.lookAt(ctx, rec, force); err != nil {
		return err
	}
	if failing != nil {
		if err := failing.Leave(ctx); err != nil && !errors.Is(err, ublk.ErrStopped) {
			return err
		}
		s.set(func() { s.failing = nil })
	}
	leases := append(slices.Clone(rec.Leases), rec.TargetLeases...)
	dev, err := s.kernel.open(ctx, rec.Spec, openOptions{takeOver: true, sw: s.sw, event: s.event, known: knownOf(rec), opened: s.opened,
		recover: &device.Recovery{ID: rec.ID, Tag: uint64(s.disk(rec).Tag), Consumers: leases, Standby: restored(rec.Standby), Left: rec.Left, Force: force}})
	if err != nil {
		if failing != nil {
			s.failDevice(ctx) // as before
		}
		return err
	}
	failpoint.Hit("recover-recorded")
	s.set(func() { s.dev, s.phase, s.problem, s.unreleased = dev, Serving, "", false })
	if err := s.noteChange(func(rec *state.Record) {
		rec.PID, rec.BootID, rec.Left = os.Getpid(), s.boot, false
		rec.Standby = recordStandby(dev.Restored())
	}); err != nil {
		// The copy has it, or the next server sees for itself.
		s.log.Warn().Err(err).Msg("the record is not up to date")
	}
	return nil
}

// lookAt sees whether the images answer, and are what they were, before anything is done
// that could hang with their storage for longer. It claims them.
func (s *Server) lookAt(ctx context.Context, rec *state.Record, force bool) error {
	came := make(chan []state.ClaimedFile, 1)
	err := s.look(ctx, func() error {
		err := changed(rec, s.boot, true)
		if notTheFile(err) && !force {
			return fmt.Errorf("%w; if it is the one, or is meant to be, 'holdfast recover --force %s' takes it as it is", err, s.name)
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
	return s.claims.change(<-came)
}

// failLeft is failDevice with the turn taken.
func (s *Server) failLeft(ctx context.Context) {
	end, err := s.turn.take(ctx)
	if err != nil {
		return
	}
	defer end()
	s.failDevice(ctx)
}

// failDevice has the device's I/O fail until it is recovered. The turn is held.
func (s *Server) failDevice(ctx context.Context) {
	s.mu.Lock()
	if s.rec == nil || s.failing != nil || s.phase != Recovering {
		s.mu.Unlock()
		return
	}
	disk := s.disk(s.rec)
	s.mu.Unlock()
	f, err := s.kernel.fail(ctx, disk)
	if err != nil {
		s.log.Error().Err(err).Msg("the device's I/O waits, and can't be failed")
		return
	}
	s.set(func() { s.failing = f })
	s.tell(api.EventRecoverFailed, "I/O of the device fails from now on, until it is recovered (recover policy fail)")
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
	if err := s.recoverNow(ctx, force); err != nil {
		return nil, err
	}
	return s.Device(), nil
}
