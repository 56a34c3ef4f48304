package server

import (
	"context"
	"time"

	"holdfast/api"
	"holdfast/state"
)

// An ending is what becomes of its server's device when the server is told to stop.
type ending struct{ *Server }

// stop is the end in order: the device is removed as if by Remove, but that a persistent one stays
// in its record. While it is in use its users are waited for, until Config says otherwise. It gives
// the exit code.
func (s *ending) stop() int {
	s.set(func() { s.stopping = true })
	s.stopCreating()
	said := ""
	for {
		done := make(chan error, 1)
		go func() { done <- s.end(false) }()
		var err error
		select {
		case err = <-done:
		case <-s.cfg.Force:
			return s.stopByForce()
		case <-s.cfg.Depart:
			return s.depart()
		case <-s.turn.ended: // removed meanwhile, or left
			return s.turn.exit
		}
		if s.turn.isEnded() {
			return s.turn.exit
		}
		if said != err.Error() { // once, and again when its users change
			said = err.Error()
			s.log.Warn().Msgf("not removed yet: %v", err)
		}
		select {
		case <-time.After(s.times.stopPoll):
		case <-s.cfg.Force:
			return s.stopByForce()
		case <-s.cfg.Depart:
			return s.depart()
		case <-s.turn.ended:
			return s.turn.exit
		}
	}
}

// stopByForce is an end that waits for nobody.
func (s *ending) stopByForce() int {
	s.log.Warn().Msg("removing the device, which is in use: I/O of its users fails")
	_ = s.end(true)
	return ExitOver
}

// depart leaves the device to a server that is to come.
func (s *ending) depart() int {
	if err := s.leave(context.Background(), ExitOver); err != nil {
		s.log.Warn().Err(err).Msg("the device is left as after a death: its requests wait for the next server")
	} else {
		s.log.Warn().Msg("the device is still in use and is left: its requests wait for the next server")
	}
	return ExitOver
}

// end ends the server, if what that means for the device could be done.
func (s *ending) end(force bool) error {
	return s.turn.inBackground(context.Background(), "the removal", func(ctx context.Context) error {
		err := s.endDevice(ctx, force)
		if err != nil && !force && s.serves() {
			return err
		}
		if err != nil {
			s.log.Error().Err(err).Msg("not ended cleanly")
		}
		s.turn.finish(ExitOver)
		return err
	})
}

// endDevice is what the server's end means for the device. One that still waits for its
// recovery is left to the next server if nobody uses it. Its users can't close it before it
// is served again: so it goes on being recovered, and is waited for as others are. By
// force it is taken away under them; its record stays, as its images were not closed.
func (s *ending) endDevice(ctx context.Context, force bool) error {
	s.mu.Lock()
	served, waits, problem, failing := s.dev != nil, s.phase == Recovering, s.problem, s.failing
	var disk state.Disk
	if s.rec != nil {
		disk = s.disk(s.rec)
	}
	s.mu.Unlock()
	switch {
	case served:
		return s.removal.removeLive(ctx, force, true)
	case !waits:
		return nil // a lost device is left alone
	}
	all, err := s.users.Of(map[int]string{disk.ID: disk.String()})
	if err == nil && len(all[disk.ID]) == 0 {
		s.log.Info().Msgf("left to the next server: %s", problem)
		return nil
	}
	if !force {
		who := "perhaps somebody who cannot be seen from here"
		if len(all[disk.ID]) > 0 {
			who = userList(all[disk.ID])
		}
		return api.Errorf(api.CodeBusy, "device %q waits to be recovered (%s), and with it %s", s.name, problem, who)
	}
	if err := s.recovery.giveUp(ctx, disk, failing); err != nil {
		return err
	}
	s.log.Warn().Msg("given up before it could be recovered: I/O of its users fails")
	return nil
}
