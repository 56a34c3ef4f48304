package device

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop"
)

// The interval between attempts to reopen doubles from the first to the longest.
const (
	firstReopen = 250 * time.Millisecond
	// reopenDrain bounds the wait for requests under way at each attempt; they
	// get more time at the next.
	reopenDrain = time.Second
	// probeTime is how long a file has to answer a read. What hangs longer is
	// left alone: at most mostProbes of the same files at once.
	probeTime  = 10 * time.Second
	mostProbes = 4
)

// longestReopen is the longest interval. Tests, which have one outage after another, shorten it.
var longestReopen = 10 * time.Second

// reopening is the attempts of one standby.
type reopening struct {
	ctx    context.Context
	cancel context.CancelFunc
	wait   time.Duration
	done   chan struct{}
}

// newReopening is for a standby that follows another closely, whose attempts were last's, or,
// with nil, for one by itself.
func newReopening(last *reopening) *reopening {
	wait := firstReopen
	if last != nil {
		wait = last.wait
	}
	a := &reopening{wait: wait, done: make(chan struct{}, 1)}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// stop ends the attempts; one that is under way gives up when it can.
func (a *reopening) stop() {
	if a != nil {
		a.cancel()
	}
}

// delay is the time to the next attempt.
func (a *reopening) delay() time.Duration {
	d := a.wait
	a.wait = min(2*a.wait, longestReopen)
	return d
}

// answered receives at the end of an attempt; nil: there is none.
func (a *reopening) answered() <-chan struct{} {
	if a == nil {
		return nil
	}
	return a.done
}

// try makes one attempt.
func (a *reopening) try(d *Device) {
	err := d.replacer.probe("reopen", d.Spec().Images)
	if err == nil {
		err = d.replacer.reopen(a.ctx)
	}
	if a.ctx.Err() == nil && d.reopenState.tried(err) {
		d.emit(api.EventReopenRefused, "%v", err)
	}
	a.done <- struct{}{}
}

// reopen puts the same files, opened anew, under the device, if they are what they were,
// and ends the standby.
func (d replacer) reopen(ctx context.Context) error {
	if err := d.lock(ctx); err != nil {
		return err
	}
	defer d.unlock()
	if st := d.machine.Status(); !st.Flag || st.ByHand {
		return nil
	}
	images := d.Spec().Images
	all := make([]bool, len(images))
	for i := range all {
		all[i] = true
	}
	return d.succeed(ctx, succession{images: images, reopen: all, drain: reopenDrain, replaced: -1, resume: d.machine.Reopened, commit: d.opened})
}

// reopenState is what is shown of the attempts.
type reopenState struct {
	mu      sync.Mutex
	n       uint64
	at      *time.Time
	err     string
	refused string
	probes  map[string]int // under way, by who asks and the files' paths
}

// next keeps when the next attempt will be, and gives back its argument.
func (s *reopenState) next(in time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := time.Now().Add(in)
	s.at = &at
	return in
}

// tried counts an attempt. It says whether the files were refused for a reason that was
// not reported yet.
func (s *reopenState) tried(err error) (report bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	s.at, s.err = nil, ""
	if err == nil {
		return false
	}
	s.err = err.Error()
	var format *ploop.FormatError
	if !errors.As(err, &format) || s.refused == s.err {
		return false
	}
	s.refused = s.err
	return true
}

// replaced keeps why a replacement failed, or that one didn't: what was wrong before is
// past then.
func (s *reopenState) replaced(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = ""
	if err != nil {
		s.err = err.Error()
	}
}

func (s *reopenState) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n, s.at, s.err, s.refused = 0, nil, "", ""
}

func (s *reopenState) get() (n uint64, at *time.Time, err string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n, s.at, s.err
}

// beginProbe counts a probe of files; false: too many of the same hang. Others, and those
// of other askers, don't count: the way out of storage that hangs is a file elsewhere, or
// another mount in its place.
func (s *reopenState) beginProbe(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.probes[key] >= mostProbes {
		return false
	}
	if s.probes == nil {
		s.probes = map[string]int{}
	}
	s.probes[key]++
	return true
}

func (s *reopenState) endProbe(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.probes[key]--; s.probes[key] == 0 {
		delete(s.probes, key)
	}
}

// probe sees whether files answer a read at all, before anything is done that could hang
// with them.
func (d replacer) probe(who string, images []ploop.ImageRef) error {
	key := who
	for _, ref := range images {
		key += "\x00" + ref.Path
	}
	if !d.reopenState.beginProbe(key) {
		return fmt.Errorf("%d earlier probes of the same files hang; abort the mount of their storage (umount -f), or give a file elsewhere", mostProbes)
	}
	answer := make(chan error, 1)
	go func() {
		defer d.reopenState.endProbe(key)
		answer <- Probe(images)
	}()
	t := time.NewTimer(probeTime)
	defer t.Stop()
	select {
	case err := <-answer:
		return err
	case <-t.C:
		return fmt.Errorf("the files don't answer within %v", probeTime)
	case <-d.closing:
		return errors.New("device is being removed")
	}
}

// Probe sees whether files answer a read at all. It hangs with their storage.
func Probe(images []ploop.ImageRef) error {
	for _, ref := range images {
		if err := probeFile(ref.Path); err != nil {
			return fmt.Errorf("%q: %w", ref.Path, err)
		}
	}
	return nil
}

// probeFile reads a file's beginning, past the page cache where it can.
func probeFile(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(fd)
	// A page: some file systems take no smaller unit past the page cache.
	if _, err := unix.Pread(fd, ploop.AlignedBuffer(4096), 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("read: %w", err)
	}
	return nil
}
