package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/server/device"
	"holdfast/state"
)

// closeLimit bounds the clean end of a device: what is in flight, the last
// flush, the in-use mark.
const closeLimit = 2 * time.Minute

// Remove takes a device away: its images are flushed and closed cleanly, then
// it is forgotten. One that is in use is only removed with force; the error
// says who uses it. A lost device has its images closed.
//
// Once begun, a removal goes on when ctx ends; only the waiting ends then.
func (d *Daemon) Remove(ctx context.Context, name string, force bool) error {
	if disk, ok := d.orphan(name); ok {
		return d.removeOrphan(ctx, disk, force)
	}
	return d.inBackground(ctx, name, "the removal", func(ctx context.Context, s *slot) error {
		switch {
		case s.dev == nil && s.rec != nil && s.phase == api.StateRecovering:
			return d.removeLeft(ctx, s, force)
		case s.dev == nil && s.rec != nil:
			return d.removeLost(s, force)
		}
		return d.removeLive(ctx, s, force, false)
	})
}

// orphan is a device of ours that has no record, by the kernel's name.
func (d *Daemon) orphan(name string) (state.Disk, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, tag := range d.orphans {
		if name == fmt.Sprintf("ublkb%d", id) {
			return state.Disk{ID: id, Tag: tag}, true
		}
	}
	return state.Disk{}, false
}

// inBackground runs what can't be left half done, with the name's token held: it goes on when
// ctx ends.
func (d *Daemon) inBackground(ctx context.Context, name, what string, do func(context.Context, *slot) error) error {
	d.mu.Lock()
	known := d.slots[name] != nil
	d.mu.Unlock()
	if !known {
		return api.Errorf(api.CodeNotFound, "there is no device %q", name)
	}
	s, err := d.acquire(ctx, name)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		err := do(context.WithoutCancel(ctx), s)
		d.release(s)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return api.Errorf(api.CodeInternal, "device %q: %s goes on in the daemon: %w", name, what, ctx.Err())
	}
}

// removeLive is the removal of a device that is served. ending: because the daemon ends.
func (d *Daemon) removeLive(ctx context.Context, s *slot, force, ending bool) error {
	if s.dev == nil {
		return api.Errorf(api.CodeNotFound, "there is no device %q", s.name)
	}
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	if !force {
		users, err := d.usersOf(ctx, s.dev)
		if err != nil {
			d.log.Warn().Err(err).Str("device", s.name).Msg("users of the device are not known")
		}
		if len(users) > 0 {
			return busy(s, users)
		}
	}
	d.set(s, func() { s.phase = api.StateRemoving })
	err := s.dev.Close(ctx, force)
	if err != nil {
		d.set(s, func() { s.phase = "" })
		return d.closeFailed(ctx, s, err)
	}
	// A late change of the record must not write it again.
	s.recMu.Lock()
	err = d.forget(s, ending)
	d.set(s, func() {
		s.phase, s.dev = "", nil
		if err != nil {
			s.problem = "it was removed cleanly, but " + err.Error()
			return
		}
		s.rec, s.problem, s.events = nil, "", nil
		d.driverProblem = "" // perhaps there were too many devices
	})
	s.recMu.Unlock()
	d.devicesChanged()
	if err != nil {
		return api.Errorf(api.CodeInternal, "device %q was removed, but its record stays: %w", s.name, err)
	}
	return nil
}

// closeFailed decides what a device is after its Close did not succeed. A busy
// one is as before. One whose requests did not end in time can be closed again.
// Otherwise the block device is gone and images may still be marked in use: it
// is lost, as if its daemon had died, and its record stays.
func (d *Daemon) closeFailed(ctx context.Context, s *slot, err error) error {
	if errors.Is(err, device.ErrBusy) {
		// Somebody came between our look and the driver's.
		users, _ := d.usersOf(ctx, s.dev)
		return busy(s, users)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		d.log.Warn().Err(err).Str("device", s.name).Msg("device has not ended yet")
		// What it waits for (requests, a change of its files, their closing) is in the error.
		d.set(s, func() { s.problem = "its removal has not ended: " + err.Error() })
		return api.Errorf(api.CodeInternal, "device %q is not removed yet, try again: %w", s.name, err)
	}
	d.log.Error().Err(err).Str("device", s.name).Msg("device was not closed cleanly")
	d.set(s, func() { s.dev, s.problem = nil, "it was not closed cleanly: "+err.Error() })
	return api.Errorf(api.CodeInternal, "device %q was not closed cleanly and is lost now: %w", s.name, err)
}

// removeLost closes the images that a dead daemon left in use.
func (d *Daemon) removeLost(s *slot, force bool) error {
	var err error
	if rec := s.rec; rec.Writable() != nil && !rec.Closed {
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		err = s.look(ctx, func() error {
			if why := changed(rec, d.boot, false); why != nil {
				return api.Errorf(api.CodeConflict, "lost device %q: %w; 'holdfast remove --force %s' forgets the device and leaves its images as they are", s.name, why, s.name)
			}
			if cerr := d.kernel.closeImages(rec.Spec, knownOf(rec)); cerr != nil {
				e := classify(cerr)
				return api.Errorf(e.Code, "lost device %q: its images cannot be closed cleanly: %w; 'holdfast image check --repair' may help, 'holdfast remove --force %s' forgets the device", s.name, cerr, s.name)
			}
			return nil
		})
	}
	if err != nil && !force {
		return err
	}
	if err != nil {
		d.log.Warn().Err(err).Str("device", s.name).Msg("forgotten by force, its images may still be marked in use")
	}
	if err := d.records.Remove(s.name); err != nil {
		return api.Errorf(api.CodeInternal, "%w", err)
	}
	d.set(s, func() { s.rec, s.phase, s.problem, s.events = nil, "", "", nil })
	d.log.Info().Str("device", s.name).Msg("lost device forgotten")
	return nil
}

func busy(s *slot, users []api.User) error {
	who := "somebody who cannot be seen from here"
	if len(users) > 0 {
		who = userList(users)
	}
	e := api.Errorf(api.CodeBusy, "device %q (%s) is in use: %s", s.name, s.dev.Path(), who)
	e.Users = users
	return e
}

// userList names at most the first few.
func userList(users []api.User) string {
	const most = 5
	var parts []string
	for i, u := range users {
		if i == most {
			parts = append(parts, fmt.Sprintf("and %d more", len(users)-most))
			break
		}
		parts = append(parts, u.String())
	}
	return strings.Join(parts, "; ")
}

// Shutdown removes every device cleanly. Those in use are reported and kept
// until their users let go. When force is closed, what is left is removed regardless of
// its users: its I/O fails from then on, but its images are flushed and closed
// cleanly; the caller logs why. Creations are refused and
// those under way taken back; recoveries go on. Lost devices stay in the records. An upgrade
// that is under way ends first: after it they may all be the heir's (Heir), which is to be
// told to stop in turn.
//
// The error names the devices that did not end cleanly.
func (d *Daemon) Shutdown(ctx context.Context, force <-chan struct{}) error {
	d.mu.Lock()
	d.stopping = true
	d.mu.Unlock()
	d.stopCreating()
	reported := map[string]string{}
	var failed []error
	for {
		removed := make(chan map[string]error, 1)
		go func() { removed <- d.removeAll(ctx, false) }()
		var left map[string]error
		select {
		case left = <-removed:
		case <-force: // while a removal hangs in its storage
			return d.removeByForce(ctx, failed)
		}
		for name, err := range left {
			if !d.serves(name) {
				failed = append(failed, err)
				delete(left, name)
				continue
			}
			// Each device once, and again when its users change.
			if reported[name] == err.Error() {
				continue
			}
			reported[name] = err.Error()
			d.log.Warn().Str("device", name).Msgf("not removed yet: %v", err)
		}
		if len(left) == 0 {
			return errors.Join(failed...)
		}
		select {
		case <-time.After(d.poll):
		case <-ctx.Done():
			return fmt.Errorf("gave up with devices still served: %w", ctx.Err())
		case <-force:
			return d.removeByForce(ctx, failed)
		}
	}
}

// removeByForce is the end of a shutdown that waits for nobody.
func (d *Daemon) removeByForce(ctx context.Context, failed []error) error {
	d.log.Warn().Msg("removing the devices that are in use: I/O of their users fails")
	for name, err := range d.removeAll(ctx, true) {
		d.log.Error().Str("device", name).Err(err).Msg("not ended cleanly")
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// serves: or is about to.
func (d *Daemon) serves(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.slots[name]
	return s != nil && (s.dev != nil || s.phase == api.StateRecovering)
}

// removeAll removes what is served, all devices at once, and returns those that
// stayed with the reasons.
func (d *Daemon) removeAll(ctx context.Context, force bool) map[string]error {
	type result struct {
		name string
		err  error
	}
	d.mu.Lock()
	var names []string
	for _, s := range d.slots {
		if s.dev != nil || s.phase != "" {
			names = append(names, s.name)
		}
	}
	d.mu.Unlock()
	results := make(chan result)
	for _, name := range names {
		go func() {
			// A creation that was taken back while we waited leaves nothing
			// to remove, or a lost device to be left alone.
			results <- result{name, d.inBackground(ctx, name, "the removal", func(ctx context.Context, s *slot) error {
				return d.endDevice(ctx, s, force)
			})}
		}()
	}
	left := map[string]error{}
	for range names {
		if r := <-results; r.err != nil && api.CodeOf(r.err) != api.CodeNotFound {
			left[r.name] = r.err
		}
	}
	return left
}
