package control

import (
	"fmt"
	"os"
	"sync"
	"time"

	"holdfast/api"

	"golang.org/x/sys/unix"
)

// A persistent device outlives its daemon's end in order, and boots of the machine: its
// record stays, marked as closed when its images were closed cleanly. A daemon that finds such a
// record, and nothing in the driver that could be recovered, creates the device again. That goes
// on in the background for as long as it takes, as images may lie on file systems that are
// mounted later. Only a removal ends it.

// Time between two tries to create a device again. Something that is mounted has all try.
const (
	againFirst = 250 * time.Millisecond
	againMost  = 30 * time.Second
)

// restore has the persistent devices without a server created again. Restored tells when each
// has been tried.
func (d *Daemon) restore() {
	var slots []*slot
	d.mu.Lock()
	for _, s := range d.slots {
		if s.rec != nil && s.rec.Spec.Persist && s.dev == nil && s.phase == "" {
			s.phase, s.problem = api.StateWaiting, "it is about to be created again"
			slots = append(slots, s)
		}
	}
	d.mu.Unlock()
	var tried sync.WaitGroup
	tried.Add(len(slots))
	for _, s := range slots {
		d.watching.Go(func() { d.again(s, tried.Done) })
	}
	if len(slots) > 0 {
		d.mountsOnce.Do(func() { d.watching.Go(d.watchMounts) })
	}
	go func() {
		tried.Wait()
		d.restoredOnce.Do(func() { close(d.restored) })
	}()
}

// Restored is closed when every persistent device that had to be created again has been tried
// at least once.
func (d *Daemon) Restored() <-chan struct{} { return d.restored }

// again creates one device, sooner or later, unless somebody else does, removes it, or the
// daemon ends. tried is called after the first try.
func (d *Daemon) again(s *slot, tried func()) {
	pause := againFirst
	for try := 1; ; try++ {
		mounted := d.mounts.next()
		err := d.tryAgain(s, pause)
		if try == 1 {
			tried()
			if err != nil {
				d.log.Warn().Str("device", s.name).Msgf("not created again yet: %v", err)
			}
		}
		if err == nil || d.creating.Err() != nil {
			return
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, againMost)
		case <-mounted:
		case <-d.creating.Done():
			return
		}
	}
}

// tryAgain is one try; nil: nothing is left to be done.
func (d *Daemon) tryAgain(s *slot, pause time.Duration) error {
	own, err := d.acquire(d.creating, s.name)
	if err != nil {
		return err
	}
	defer d.release(own)
	d.mu.Lock()
	waits := own == s && s.rec != nil && s.phase == api.StateWaiting
	d.mu.Unlock()
	if !waits {
		return nil
	}
	if err := d.create(d.creating, s, s.rec.Spec); err != nil {
		d.set(s, func() {
			s.phase, s.problem = api.StateWaiting, fmt.Sprintf("not created again yet: %v; next try within %v", err, pause)
		})
		return err
	}
	d.log.Info().Str("device", s.name).Msg("created again, as it is persistent")
	return nil
}

// forget ends the record of a device whose images were closed cleanly: for good, or, when the
// daemon's end is the reason and the device is persistent, until the next daemon.
func (d *Daemon) forget(s *slot, ending bool) error {
	if !ending || !s.rec.Spec.Persist {
		return d.records.Remove(s.name)
	}
	closed := *s.rec
	closed.ID, closed.PID, closed.Closed, closed.Standby, closed.TargetLeases = -1, 0, true, nil, nil
	return d.records.Save(&closed)
}

// bell wakes everybody who waits for its next ring.
type bell struct {
	mu sync.Mutex
	ch chan struct{}
}

// next is closed by the next ring.
func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
	}
	b.ch = nil
}

// watchMounts rings when something is mounted or unmounted. The kernel tells by poll(2)
// that the table of mounts has changed since it was last polled.
func (d *Daemon) watchMounts() {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return // they try from time to time anyway
	}
	defer f.Close()
	for d.creating.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if n, err := unix.Poll(fds, 500); n > 0 {
			d.mounts.ring()
		} else if err != nil && err != unix.EINTR {
			return
		}
	}
}
