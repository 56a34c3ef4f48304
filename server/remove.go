package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/internal/users"
	"holdfast/server/device"
)

// closeLimit bounds the clean end of a device: what is in flight, the last
// flush, the in-use mark.
const closeLimit = 2 * time.Minute

// Remove takes the device away: its images are flushed and closed cleanly, then
// it is forgotten. One that is in use is only removed with force; the error
// says who uses it. A lost device has its images closed.
//
// Once begun, a removal goes on when ctx ends; only the waiting ends then.
func (s *Server) Remove(ctx context.Context, force bool) error {
	return s.turn.inBackground(ctx, "the removal", func(ctx context.Context) error {
		s.mu.Lock()
		dev, rec, phase := s.dev, s.rec, s.phase
		s.mu.Unlock()
		var err error
		switch {
		case dev != nil:
			err = s.removal.removeLive(ctx, force, false)
		case rec == nil:
			return api.Errorf(api.CodeNotFound, "there is no device %q", s.name)
		case phase == Recovering:
			err = s.recovery.removeWaiting(ctx, force)
		default:
			err = s.removal.removeLost(force)
		}
		if err == nil {
			s.turn.finish(ExitOver)
		}
		return err
	})
}

// A removal takes its server's device away.
type removal struct{ *Server }

// removeLive is the removal of a device that is served. ending: because the server ends. The turn
// is held.
func (s *removal) removeLive(ctx context.Context, force, ending bool) error {
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	if !force {
		held, err := s.usersOf(ctx)
		if err != nil {
			s.log.Warn().Err(err).Msg("users of the device are not known")
		}
		if len(held) > 0 {
			return s.busy(held)
		}
	}
	s.set(func() { s.phase = Removing })
	if err := s.dev.Close(ctx, force); err != nil {
		return s.closeFailed(ctx, err)
	}
	err := s.ledger.removed(ending)
	s.claims.end()
	if err != nil {
		return api.Errorf(api.CodeInternal, "device %q was removed, but its record stays: %w", s.name, err)
	}
	return nil
}

// closeFailed decides what a device is after its Close did not succeed. A busy
// one is as before. One whose requests did not end in time can be closed again.
// Otherwise the block device is gone and images may still be marked in use: it
// is lost, as if its server had died, and its record stays.
func (s *removal) closeFailed(ctx context.Context, err error) error {
	if errors.Is(err, device.ErrBusy) {
		s.set(func() { s.phase = Serving })
		// Somebody came between our search and the driver's.
		held, _ := s.usersOf(ctx)
		return s.busy(held)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		s.log.Warn().Err(err).Msg("device has not ended yet")
		// What it waits for (requests, a change of its files, their closing) is in the error.
		s.set(func() { s.phase, s.problem = Serving, "its removal has not ended: "+err.Error() })
		return api.Errorf(api.CodeInternal, "device %q is not removed yet, try again: %w", s.name, err)
	}
	s.log.Error().Err(err).Msg("device was not closed cleanly")
	s.set(func() { s.dev, s.phase, s.problem = nil, Lost, "it was not closed cleanly: "+err.Error() })
	return api.Errorf(api.CodeInternal, "device %q was not closed cleanly and is lost now: %w", s.name, err)
}

// removeLost closes the images that a dead server left in use, and forgets the device. The turn
// is held.
func (s *removal) removeLost(force bool) error {
	rec := s.record()
	var err error
	if rec.Writable() != nil && !rec.Closed {
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		err = s.inspections.inspect(ctx, rec.Spec.Images, func() error {
			if why := changed(rec, s.boot, false); why != nil {
				return api.Errorf(api.CodeConflict, "lost device %q: %w; 'holdfast remove --force %s' forgets the device and leaves its images as they are", s.name, why, s.name)
			}
			if cerr := s.kernel.closeImages(rec.Spec, knownOf(rec)); cerr != nil {
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
		s.log.Warn().Err(err).Msg("forgotten by force, its images may still be marked in use")
	}
	if err := s.ledger.records.Remove(s.name); err != nil {
		return api.Errorf(api.CodeInternal, "%w", err)
	}
	s.set(func() { s.rec, s.phase, s.problem = nil, Empty, "" })
	s.log.Info().Msg("lost device forgotten")
	return nil
}

// usersOf waits up to settle for transient users to go, and says who is left.
func (s *removal) usersOf(ctx context.Context) ([]api.User, error) {
	deadline := time.Now().Add(s.times.settle)
	for {
		all, err := s.users.Of(map[int]string{s.dev.ID(): s.dev.Path()})
		held := all[s.dev.ID()]
		if err != nil || len(held) == 0 || !users.Transient(held) || time.Now().After(deadline) {
			return held, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return held, fmt.Errorf("gave up waiting: %w", ctx.Err())
		}
	}
}

func (s *removal) busy(held []api.User) error {
	who := "somebody who cannot be seen from here"
	if len(held) > 0 {
		who = userList(held)
	}
	e := api.Errorf(api.CodeBusy, "device %q (%s) is in use: %s", s.name, s.dev.Path(), who)
	e.Users = held
	return e
}

// userList names at most the first few.
func userList(held []api.User) string {
	const most = 5
	var parts []string
	for i, u := range held {
		if i == most {
			parts = append(parts, fmt.Sprintf("and %d more", len(held)-most))
			break
		}
		parts = append(parts, u.String())
	}
	return strings.Join(parts, "; ")
}
