package server

import (
	"context"
	"time"

	"holdfast/api"
	"holdfast/internal/failpoint"
)

// leaveDrain is how long a device that is left waits for requests under way, and leaveTime how long
// all of it may take before there is no way back.
const (
	leaveDrain = 5 * time.Second
	leaveTime  = leaveDrain + recoverTime
)

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
	return s.turn.inBackground(ctx, "the leaving", func(ctx context.Context) error {
		s.mu.Lock()
		dev, failing, rec := s.dev, s.failing, s.rec
		s.mu.Unlock()
		if rec == nil {
			return api.Errorf(api.CodeNotFound, "there is no device %q", s.name)
		}
		if failing != nil {
			if err := s.leaveFailing(ctx, failing); err != nil {
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

func (s *Server) leaveFailing(ctx context.Context, f failing) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	return f.Leave(ctx)
}

func (s *Server) leaveServed(ctx context.Context, dev live) error {
	if err := s.examine(ctx); err != nil {
		return api.Errorf(api.CodeOf(err), "device %q could not be taken over by another server: %w", s.name, err)
	}
	// Now, not when the keeper of the device comes to it.
	s.ledger.recordStandby(dev)
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	if err := dev.Leave(ctx, leaveDrain); err != nil {
		return api.Errorf(api.CodeBusy, "device %q can't be left: %w", s.name, err)
	}
	s.ledger.left(dev)
	return nil
}

// examine sees whether another server could take the device over.
func (s *Server) examine(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.times.inspect)
	defer cancel()
	rec := s.record()
	return s.inspections.inspect(ctx, rec.Spec.Images, func() error {
		if err := changed(rec, s.boot, true); err != nil {
			return err
		}
		return s.kernel.examine(rec.Spec, knownOf(rec))
	})
}
