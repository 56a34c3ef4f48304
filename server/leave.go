package server

import (
	"context"
	"time"

	"holdfast/api"
	"holdfast/internal/failpoint"
)

// leaveDrain is how long a device that is left waits for requests under way.
const leaveDrain = 5 * time.Second

// Leave gives the device up in order, for another server that takes it over: its requests wait
// for that one. What a successor could not take is not left. After a success this server ends.
func (s *Server) Leave(ctx context.Context) error {
	s.mu.Lock()
	stopping := s.stopping
	s.mu.Unlock()
	if stopping {
		return api.Errorf(api.CodeStopping, "the server is stopping")
	}
	return s.leave(ctx, ExitLeft)
}

func (s *Server) leave(ctx context.Context, exit int) error {
	return s.inBackground(ctx, "the leaving", func(ctx context.Context) error {
		s.mu.Lock()
		dev, failing, rec := s.dev, s.failing, s.rec
		s.mu.Unlock()
		if rec == nil {
			return api.Errorf(api.CodeNotFound, "there is no device %q", s.name)
		}
		ctx, cancel := context.WithTimeout(ctx, leaveDrain+recoverTime)
		defer cancel()
		if failing != nil {
			if err := failing.Leave(ctx); err != nil {
				return api.Errorf(api.CodeInternal, "device %q can't be left: %w", s.name, err)
			}
			s.set(func() { s.failing = nil })
		}
		if dev != nil {
			if err := s.leaveServed(ctx, dev); err != nil {
				return err
			}
		}
		failpoint.Hit("leave-left")
		s.turn.finish(exit)
		return nil
	})
}

func (s *Server) leaveServed(ctx context.Context, dev live) error {
	rec := s.record()
	err := s.look(ctx, func() error {
		if err := changed(rec, s.boot, true); err != nil {
			return err
		}
		return s.kernel.examine(rec.Spec, knownOf(rec))
	})
	if err != nil {
		return api.Errorf(api.CodeOf(err), "device %q could not be taken over by another server: %w", s.name, err)
	}
	// Now, not when the keeper of the device comes to it.
	s.noteStandby(dev)
	if err := dev.Leave(ctx, leaveDrain); err != nil {
		return api.Errorf(api.CodeBusy, "device %q can't be left: %w", s.name, err)
	}
	// With what an error during the last requests has brought about, of which the keeper can't
	// tell any more; and no other change of the record may come after the successor has read it.
	s.recMu.Lock()
	defer s.recMu.Unlock()
	now := *s.record()
	now.Left, now.Standby = true, recordStandby(dev.Restored())
	if err := s.records.Save(&now); err != nil {
		s.log.Warn().Err(err).Msg("that it was left in order could not be noted")
	}
	s.set(func() { s.rec, s.dev, s.phase, s.problem = &now, nil, Recovering, "it was left to another server" })
	return nil
}
