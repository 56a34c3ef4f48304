package control

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
// from the first to the longest. A lock that is held is looked at more often: it is the
// fence, and opens when the last write of the dead server has landed.
const (
	recoverTime      = 10 * time.Second
	firstRecoverWait = 20 * time.Millisecond
	lastRecoverWait  = 2 * time.Second
	lockWait         = 100 * time.Millisecond
)

// recoverAll looks what the driver has of devices of earlier daemons: those with a record
// are recovered, all at once and in the background; the others are told of.
func (d *Daemon) recoverAll() {
	ctx, cancel := context.WithTimeout(context.Background(), recoverTime)
	defer cancel()
	left, err := d.kernel.left(ctx)
	if err != nil {
		d.log.Error().Err(err).Msg("what the driver has of earlier daemons is not known")
	}
	for _, s := range d.slots {
		disk := s.rec.Disk(d.cfg.StateDir)
		waits, there := left[disk]
		if !there && err != nil {
			waits, there = true, true // for all that is known; trying tells
		}
		if s.rec.BootID != d.boot || !there || disk.ID < 0 {
			d.lose(s)
			continue
		}
		delete(left, disk)
		if !waits {
			d.lose(s)
			d.clear(ctx, disk)
			continue
		}
		d.set(s, func() {
			s.phase, s.problem = api.StateRecovering, fmt.Sprintf("its daemon (process %d) died or left", s.rec.PID)
		})
		d.tell(s.name, api.EventRecovering, "%v is to be served again: %s", disk, s.problem)
		d.watching.Go(func() { d.recover(d.alive, s) })
	}
	for disk, waits := range left {
		if !waits {
			d.clear(ctx, disk)
			continue
		}
		// Somebody may use it, and its record may yet be found.
		p := api.Problem{
			File:   disk.String(),
			Reason: "a device of ours without a record; its I/O waits",
			Advice: fmt.Sprintf("put its record back into %s and restart the daemon, or give the device up: 'holdfast remove --force ublkb%d'", d.records.Dir, disk.ID),
		}
		d.mu.Lock()
		d.problems = append(d.problems, p)
		d.orphans[disk.ID] = disk.Tag
		d.mu.Unlock()
		d.log.Error().Str("file", p.File).Msgf("%s; %s", p.Reason, p.Advice)
	}
}

// lose says of a device that nothing of it lives.
func (d *Daemon) lose(s *slot) {
	problem := fmt.Sprintf("its daemon (process %d) died", s.rec.PID)
	if s.rec.BootID != d.boot {
		problem = "the machine went down while the device was served"
	}
	d.set(s, func() { s.problem = problem })
	if s.rec.Spec.Persist {
		return // and is created again
	}
	d.log.Warn().Str("device", s.name).Msgf("device is lost: %s; %s", problem, lostAdvice(s.name))
}

// clear deletes what can't be recovered. It can't fail: what stays is dead, and only
// takes up a number.
func (d *Daemon) clear(ctx context.Context, disk state.Disk) {
	if err := d.kernel.delete(ctx, disk); err != nil {
		d.log.Warn().Msgf("the kernel keeps the dead device %v: %v", disk, err)
		return
	}
	d.log.Info().Msgf("deleted the dead device %v", disk)
}

// recover tries until the device is served, or there is nothing to recover any more.
func (d *Daemon) recover(ctx context.Context, s *slot) {
	begin, wait := time.Now(), firstRecoverWait
	for {
		err := d.recoverNow(ctx, s, false)
		if err == nil || ctx.Err() != nil || api.CodeOf(err) == api.CodeNotFound {
			return
		}
		d.mu.Lock()
		rec := s.rec
		d.mu.Unlock()
		if rec == nil {
			return // it was given up
		}
		if rec.Spec.RecoverPolicy == api.RecoverFail && time.Since(begin) > recoverTimeout(&rec.Spec) {
			d.failLeft(ctx, s)
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
func (d *Daemon) recoverNow(ctx context.Context, s *slot, force bool) error {
	own, err := d.acquire(ctx, s.name)
	if err != nil {
		return err
	}
	defer d.release(own)
	d.mu.Lock()
	waits := own == s && s.rec != nil && s.phase == api.StateRecovering
	d.mu.Unlock()
	if !waits {
		return api.Errorf(api.CodeNotFound, "device %q does not wait for a server", s.name)
	}
	return d.tryRecovery(ctx, s, force)
}

// tryRecovery does the work, with the name's token held.
func (d *Daemon) tryRecovery(ctx context.Context, s *slot, force bool) error {
	d.mu.Lock()
	rec, failing := *s.rec, s.failing
	d.mu.Unlock()
	err := d.takeOver(ctx, s, &rec, failing, force)
	if err == nil || ctx.Err() != nil {
		return err
	}
	// A file of another size is not the device's fault: it waits for the right one.
	if errors.Is(err, ublk.ErrNoDevice) || errors.Is(err, ublk.ErrNotRecoverable) && !errors.Is(err, ublk.ErrOtherDisk) {
		d.set(s, func() { s.phase, s.problem = "", "it can't be recovered: "+err.Error() })
		defer d.restore() // if it is persistent
		d.tell(s.name, api.EventRecoverFailed, "the device is lost: %v", err)
		return api.Errorf(api.CodeNotFound, "device %q: %w", s.name, err)
	}
	if errors.Is(err, device.ErrNoFence) {
		err = fmt.Errorf("%w: 'holdfast recover --force %s'", err, s.name)
	}
	// The images' locks may hang by the same reference.
	unreleased := d.kernel.unreleased(ctx, rec.Disk(d.cfg.StateDir))
	if is := errors.Is(err, ublk.ErrUnreleased); is || s.longUnreleased(unreleased) {
		text := unreleasedText(rec.ID, d.kernel.holders(rec.ID))
		if is {
			err = fmt.Errorf("%w: %s", ublk.ErrUnreleased, text)
		} else {
			err = fmt.Errorf("%w: %s (%w)", ublk.ErrUnreleased, text, err)
		}
	}
	d.mu.Lock()
	news := s.problem != err.Error()
	s.problem, s.unreleased = err.Error(), errors.Is(err, ublk.ErrUnreleased)
	d.mu.Unlock()
	if news {
		d.tell(s.name, api.EventRecoverFailed, "not yet: %v", err)
	}
	e := classify(err)
	return api.Errorf(e.Code, "device %q can't be recovered now: %w", s.name, err)
}

// waitState is the state of a device that waits for its recovery; Daemon.mu is held.
func (s *slot) waitState() string {
	switch {
	case s.failing != nil:
		return api.StateUnrecovered
	case s.unreleased:
		return api.StateUnreleased
	}
	return api.StateRecovering
}

// takeOver becomes the device's server.
func (d *Daemon) takeOver(ctx context.Context, s *slot, rec *state.Record, failing failing, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTime)
	defer cancel()
	if err := d.lookAt(ctx, s, rec, force); err != nil {
		return err
	}
	if failing != nil {
		if err := failing.Leave(ctx); err != nil && !errors.Is(err, ublk.ErrStopped) {
			return err
		}
		d.set(s, func() { s.failing = nil })
	}
	leases := append(slices.Clone(rec.Leases), d.targets.watched(rec.TargetLeases)...)
	dev, err := d.kernel.open(ctx, rec.Spec, openOptions{takeOver: true, key: d.check, event: d.event(s), known: knownOf(rec), opened: d.opened(s, rec),
		recover: &device.Recovery{ID: rec.ID, Tag: uint64(rec.Disk(d.cfg.StateDir).Tag), Consumers: leases, Standby: restored(rec.Standby), Left: rec.Left, Force: force}})
	if err != nil {
		if failing != nil {
			d.failDevice(ctx, s) // as before
		}
		return err
	}
	failpoint.Hit("recover-recorded")
	d.set(s, func() { s.dev, s.phase, s.problem, s.unreleased, d.driverProblem = dev, "", "", false, "" })
	if err := d.noteChange(s, func(rec *state.Record) {
		rec.PID, rec.BootID, rec.Left = os.Getpid(), d.boot, false
		rec.Standby = recordStandby(dev.Restored())
	}); err != nil {
		// The copy has it, or the next daemon sees for itself.
		d.log.Warn().Err(err).Str("device", s.name).Msg("the record is not up to date")
	}
	d.targets.inherit(s.name, dev, rec.TargetLeases)
	go d.devicesChanged()
	return nil
}

// lookAt sees whether the images answer, and are what they were, before anything is done
// that could hang with their storage for longer.
func (d *Daemon) lookAt(ctx context.Context, s *slot, rec *state.Record, force bool) error {
	return s.look(ctx, func() error {
		err := changed(rec, d.boot, true)
		if notTheFile(err) && !force {
			return fmt.Errorf("%w; if it is the one, or is meant to be, 'holdfast recover --force %s' takes it as it is", err, s.name)
		}
		if err != nil && !notTheFile(err) {
			return err
		}
		return device.Probe(rec.Spec.Images)
	})
}

// look does what may hang with the storage of a device's images, and waits for it until ctx
// ends: the name's token is held, and an upgrade and the daemon's end wait for that. While
// it hangs the next ones only say so.
func (s *slot) look(ctx context.Context, do func() error) error {
	if !s.looking.CompareAndSwap(false, true) {
		return api.Errorf(api.CodeImage, "the storage of its images still doesn't answer")
	}
	came := make(chan error, 1)
	go func() {
		defer s.looking.Store(false)
		came <- do()
	}()
	select {
	case err := <-came:
		return err
	case <-ctx.Done():
		return api.Errorf(api.CodeImage, "the storage of its images doesn't answer")
	}
}

// failLeft is failDevice with the name's token taken.
func (d *Daemon) failLeft(ctx context.Context, s *slot) {
	own, err := d.acquire(ctx, s.name)
	if err != nil {
		return
	}
	defer d.release(own)
	if own == s {
		d.failDevice(ctx, s)
	}
}

// failDevice has the device's I/O fail until it is recovered. The name's token is held.
func (d *Daemon) failDevice(ctx context.Context, s *slot) {
	d.mu.Lock()
	if s.rec == nil || s.failing != nil || s.phase != api.StateRecovering {
		d.mu.Unlock()
		return
	}
	disk := s.rec.Disk(d.cfg.StateDir)
	d.mu.Unlock()
	f, err := d.kernel.fail(ctx, disk)
	if err != nil {
		d.log.Error().Err(err).Str("device", s.name).Msg("the device's I/O waits, and can't be failed")
		return
	}
	d.set(s, func() { s.failing = f })
	d.tell(s.name, api.EventRecoverFailed, "I/O of the device fails from now on, until it is recovered (recover policy fail)")
}

// Recover tries to recover a device now. With force it goes on where the image's file
// system has no locks that could tell whether writes of the dead server are under way.
func (d *Daemon) Recover(ctx context.Context, name string, force bool) (*api.Device, error) {
	d.mu.Lock()
	s := d.slots[name]
	state := ""
	switch {
	case s == nil || s.rec == nil:
		state = "there is no device %q"
	case s.dev != nil:
		state = "device %q is served"
	case s.phase != api.StateRecovering:
		state = "device %q has nothing left in the driver to be recovered: create or remove it"
	}
	d.mu.Unlock()
	switch {
	case s == nil || s.rec == nil:
		return nil, api.Errorf(api.CodeNotFound, state, name)
	case state != "":
		return nil, api.Errorf(api.CodeConflict, state, name)
	}
	if err := d.recoverNow(ctx, s, force); err != nil {
		return nil, err
	}
	return d.Device(name)
}

// movesStandby are the events after which the record's standby is another.
var movesStandby = map[string]bool{
	api.EventStandby: true, api.EventKept: true, api.EventRecovered: true, api.EventCleared: true,
}

// noteStandby brings the record in line with the device's standby.
func (d *Daemon) noteStandby(s *slot, dev live) {
	err := d.noteChange(s, func(rec *state.Record) { rec.Standby = recordStandby(dev.Restored()) })
	if err != nil && api.CodeOf(err) != api.CodeNotFound {
		d.log.Warn().Err(err).Str("device", s.name).Msg("the device's standby could not be noted")
	}
}
