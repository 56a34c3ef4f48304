package server

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A persistent device outlives its server's end in order, and boots of the machine: its record
// stays, marked as closed when its images were closed cleanly. A server that finds such a record,
// and nothing in the driver that could be recovered, creates the device again. That goes on in the
// background for as long as it takes, as images may lie on file systems that are mounted later.
// Only a removal ends it.

// Time between two tries to create a device again. Something that is mounted has it tried at once.
const (
	againFirst = 250 * time.Millisecond
	againMost  = 30 * time.Second
)

// again has the device created again.
func (s *creation) again() {
	s.become(Waiting, "it is about to be created again")
	s.background.Go(s.watchMounts)
	s.background.Go(s.createAgain)
}

// createAgain goes on until the device is served, somebody else creates or removes it, or the
// server is told to stop.
func (s *creation) createAgain() {
	pause := againFirst
	for try := 1; ; try++ {
		mounted := s.mounts.Next()
		err := s.tryAgain(pause)
		if try == 1 && err != nil {
			s.log.Warn().Msgf("not created again yet: %v", err)
		}
		if err == nil || s.creating.Err() != nil {
			return
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, againMost)
		case <-mounted:
		case <-s.creating.Done():
			return
		}
	}
}

// tryAgain is one try; nil: nothing is left to be done.
func (s *creation) tryAgain(pause time.Duration) error {
	// To wait for storage that owes an answer would only keep the turn from others.
	if rec := s.record(); rec != nil {
		if err := s.inspections.unanswered(refs(rec.Spec.Images)); err != nil {
			return err
		}
	}
	end, err := s.turn.take(s.creating)
	if err != nil {
		return err
	}
	defer end()
	s.mu.Lock()
	waits := s.phase == Waiting
	rec := s.rec
	s.mu.Unlock()
	if !waits {
		return nil
	}
	if err := s.create(s.creating, rec.Spec); err != nil {
		s.become(Waiting, fmt.Sprintf("not created again yet: %v; next try within %v", err, pause))
		return err
	}
	s.log.Info().Msg("created again, as it is persistent")
	return nil
}

// watchMounts says when something is mounted or unmounted, while the device waits to be created
// again. The kernel tells by poll(2) that the table of mounts has changed since it was last polled.
func (s *creation) watchMounts() {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return // it is tried from time to time anyway
	}
	defer f.Close()
	for s.creating.Err() == nil && s.waitsToBeCreated() {
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if n, err := unix.Poll(fds, int(s.times.mounts.Milliseconds())); n > 0 {
			s.mounts.Broadcast()
		} else if err != nil && err != unix.EINTR {
			return
		}
	}
}
