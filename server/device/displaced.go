package device

import (
	"errors"
	"slices"
	"sync"
	"time"

	"holdfast/api"

	"golang.org/x/sys/unix"
)

// pathFresh is for how long what a path leads to is taken as known.
const pathFresh = time.Second

// pathWatch looks up the images' paths, each on a goroutine of its own, as it may hang.
type pathWatch struct {
	mu   sync.Mutex
	asks []*pathAsk // by level
}

type pathAsk struct {
	image api.ImageStatus
	inquiry[api.Displaced]
}

// displaced says which images are not at their paths, as far as that is known within
// surveyTime.
func (w *pathWatch) displaced(images []api.ImageStatus) []api.Displaced {
	type answer struct {
		ask  *pathAsk
		done <-chan struct{}
		sent time.Time
	}
	var asked []answer
	w.mu.Lock()
	for i, im := range images {
		if i == len(w.asks) {
			w.asks = append(w.asks, nil)
		}
		// One that hangs belongs to the file it was about: another file is asked about at once.
		if a := w.asks[i]; a == nil || !sameFile(a.image, im) {
			w.asks[i] = &pathAsk{image: im}
		}
		a := w.asks[i]
		done, sent := a.ask(func(do func()) error { go do(); return nil }, func() *api.Displaced { return lookUp(&a.image) }, pathFresh)
		asked = append(asked, answer{a, done, sent})
	}
	w.mu.Unlock()
	var out []api.Displaced
	for _, a := range asked {
		if !await(a.done, a.sent, surveyTime) && time.Since(a.sent) >= hungAfter {
			out = append(out, api.Displaced{Level: a.ask.image.Level, Path: a.ask.image.Path, How: api.PathSilent})
			continue
		}
		if is := a.ask.last.Load(); is != nil && is.How != "" {
			out = append(out, *is)
		}
	}
	return slices.Clip(out)
}

func sameFile(a, b api.ImageStatus) bool {
	return a.Path == b.Path && a.Level == b.Level && a.Dev == b.Dev && a.Ino == b.Ino
}

// lookUp says whether an image's file is at its path. It hangs with its storage.
func lookUp(im *api.ImageStatus) *api.Displaced {
	d := &api.Displaced{Level: im.Level, Path: im.Path}
	var st unix.Stat_t
	err := unix.Stat(im.Path, &st)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		d.How = api.PathGone
	case err != nil:
		d.How, d.Error = api.PathError, err.Error()
	case st.Mode&unix.S_IFMT == unix.S_IFBLK && im.Rdev != 0:
		// The name of a device may be made anew.
		if uint64(st.Rdev) != im.Rdev {
			d.How = api.PathOther
		}
	case uint64(st.Dev) != im.Dev || st.Ino != im.Ino:
		d.How = api.PathOther
	}
	return d
}
