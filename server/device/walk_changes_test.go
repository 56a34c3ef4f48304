package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/hack/faultfs"
)

// kill has a way's server die, and be started anew.
func (w *walk) kill() {
	s, other := &w.mounts.a, w.mounts.b
	if w.one(2) {
		s, other = &w.mounts.b, w.mounts.a
	}
	(*s).Kill()
	// The next server is a process of ours first, and the kernel lets none end its hold of
	// a file of which a write hangs (fuse_flush).
	w.mend(other, w.one(2))
	time.Sleep(time.Duration(w.rng.IntN(20)) * time.Millisecond)
	next, err := faultfs.Mount(w.mounts.backing, (*s).Dir, w.storage)
	if err != nil {
		w.fatal("%v", err)
	}
	w.t.Cleanup(func() { next.Close() })
	*s = next
}

// replace puts the same files there by some way.
func (w *walk) replace(s *faultfs.Storage, level int) string {
	ref := refs(s, w.names[0])[0]
	if level < 0 {
		ref = refs(s, w.names[1])[0]
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Replace(w.t.Context(), Replace{Level: level, Image: ref, Drain: walkDrain}) }()
	select {
	case err := <-ended:
		if err != nil {
			return "no replace"
		}
		return "replace"
	case <-time.After(3 * time.Second): // the new file hangs too
	}
	for _, s := range []*faultfs.Storage{w.mounts.a, w.mounts.b} {
		w.mend(s, w.one(2))
	}
	select {
	case err := <-ended:
		if err == nil {
			return "replace"
		}
	case <-time.After(time.Minute):
		w.fatal("a replacement hangs, with all storage well")
	}
	return "replace that hung"
}

// copyTop holds the device, copies its top, and goes on with the copy.
func (w *walk) copyTop() string {
	if w.SetStandby(true) != nil {
		return "no copy"
	}
	// What was under way has to come back. The figures are not of one moment, so
	// they have to stay.
	entered := w.Status().Standby.Entered
	quiet := func() bool {
		s := w.Status()
		return len(s.Gate) > 0 && s.Counters.InFlight == s.Standby.Held && s.Standby.Stuck == 0 && s.Standby.Entered == entered
	}
	for still, n := 0, 0; still < 10; n++ {
		if still++; !quiet() {
			still = 0
		}
		if n > 100 {
			return "no copy"
		}
		time.Sleep(time.Millisecond)
	}
	w.made++
	name := fmt.Sprintf("top%d", w.made)
	if err := copyFile(filepath.Join(w.mounts.backing, w.names[1]), filepath.Join(w.mounts.backing, name)); err != nil {
		w.fatal("%v", err)
	}
	if !quiet() { // a reopening, or a time-out, has ended it
		return "no copy"
	}
	was := w.names
	w.names = []string{was[0], name}
	if got := w.replace(w.mount(), -1); got != "replace" {
		w.names = was
		return "no copy"
	}
	return "copy"
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// recreate removes the device, perhaps with its storage dead, and makes it anew.
func (w *walk) recreate() {
	w.allowed.set(true)
	healthy := w.one(2)
	for _, s := range []*faultfs.Storage{w.mounts.a, w.mounts.b} {
		if healthy {
			w.mend(s, true)
		} else { // what hangs would keep it
			s.Clear()
			w.hanging = 0
		}
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	if err := w.Close(ctx, true); err != nil && (healthy || ctx.Err() != nil) {
		// The way that it uses may have been killed: then it can't be healthy.
		if ctx.Err() != nil {
			w.fatal("closing: %v", err)
		}
	}
	w.quiesce("after the removal")
	unix.Close(int(w.fd))
	for _, s := range []*faultfs.Storage{w.mounts.a, w.mounts.b} {
		w.mend(s, true)
	}
	w.open()
}
