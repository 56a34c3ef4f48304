package device

import (
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/hack/faultfs"
	"holdfast/ploop"
	"holdfast/ploop/stack"
)

// quiesce waits until no walker waits for a request.
func (w *walk) quiesce(when string) {
	for i, k := range w.walkers {
		select {
		case k.jobs <- "": // it takes one, so it is idle
		case <-time.After(time.Minute):
			w.fatal("%s: the request of walker %d (%s) doesn't end", when, i, k.doing.Load())
		}
	}
}

// rest mends everything, and looks.
func (w *walk) rest() {
	for _, s := range []*faultfs.Storage{w.mounts.a, w.mounts.b} {
		w.mend(s, w.one(2))
	}
	for _, who := range []string{"key", "c1"} {
		w.arm(who, true)
	}
	// A time-out may be near; without one nothing may fail from here.
	var err error
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if err = w.Replace(w.t.Context(), Replace{Level: 0, Image: refs(w.mounts.a, w.names...)[0], Drain: walkDrain}); err == nil {
			err = w.Replace(w.t.Context(), Replace{Level: -1, Image: refs(w.mounts.a, w.names...)[1], Drain: walkDrain})
		}
		if err == nil {
			break
		}
		if time.Now().After(end) {
			w.fatal("with all storage well the device isn't to be mended: %v", err)
		}
	}
	w.quiesce("at rest")
	for _, k := range w.walkers {
		k.jobs <- "check"
	}
	w.quiesce("at rest")
	eventually(w.t, "all requests ended, once", func() bool {
		s := w.Status()
		return s.Counters.InFlight == 0 && s.Standby.Held == 0 && s.Standby.Stuck == 0
	})
	if s := w.Status(); s.State != api.StateLive || len(s.Gate) != 0 || s.Standby.Value != "off" {
		w.fatal("at rest: not live")
	}
	if w.t.Failed() {
		w.t.Log("what is wrong in the images, looked at past the device, and what a second look at the device finds:")
		w.inImages()
		for _, k := range w.walkers {
			k.jobs <- "check"
		}
		w.quiesce("a second look")
		w.fatal("at rest: the data isn't right")
	}
}

// end closes the device, and looks at the images without it.
func (w *walk) end() {
	if err := w.Close(w.t.Context(), true); err != nil {
		w.fatal("closing: %v", err)
	}
	unix.Close(int(w.fd))
	checkClean(w.t, w.behind())
	w.inImages()
}

func (w *walk) behind() (images []ploop.ImageRef) {
	for _, n := range w.names {
		images = append(images, ploop.ImageRef{Path: filepath.Join(w.mounts.backing, n)})
	}
	return images
}

// inImages looks at the blocks without the device.
func (w *walk) inImages() {
	s, err := stack.Open(w.behind(), stack.Options{ReadOnly: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	p := make([]byte, blockSize)
	for _, k := range w.walkers {
		for i := range k.legal {
			b := k.first + uint64(i)
			if _, err := s.ReadAt(p, int64(b)*blockSize); err != nil {
				w.t.Fatal(err)
			}
			if err := k.judge(i, p); err != nil {
				w.t.Errorf("in the images: %v", err)
			}
		}
	}
}
