package device

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Displaced is an image that is served from an open file which is not known to be the one at
// its path. I/O goes on all the same; but whoever opens the path, as an upgrade, a recovery or
// a reopening does, gets something else.
type Displaced struct {
	Level int    `json:"level"`
	Path  string `json:"path"`
	How   string `json:"how"`             // one of the Path constants
	Error string `json:"error,omitempty"` // of PathError
}

// How an image is displaced.
const (
	PathGone   = "gone"   // nothing is at its path: the file was deleted or renamed, or its mount is gone
	PathOther  = "other"  // another file is at its path
	PathError  = "error"  // its path can't be looked up
	PathSilent = "silent" // looking it up hangs for longer than hungAfter
)

// pathFresh is for how long what a path leads to is taken as known.
const pathFresh = time.Second

// pathWatch looks up the images' paths, each on a goroutine of its own, as it may hang.
type pathWatch struct {
	mu   sync.Mutex
	asks []*pathAsk // by level
}

type pathAsk struct {
	image ImageStatus
	inquiry[Displaced]
}

// displaced says which images are not at their paths, as far as that is known within
// surveyTime.
func (d *Device) displaced(images []ImageStatus) []Displaced {
	type answer struct {
		ask  *pathAsk
		done <-chan struct{}
		sent time.Time
	}
	var asked []answer
	w := &d.paths
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
		done, sent := a.ask(func(do func()) error { go do(); return nil }, func() *Displaced { return lookUp(&a.image) }, pathFresh)
		asked = append(asked, answer{a, done, sent})
	}
	w.mu.Unlock()
	var out []Displaced
	for _, a := range asked {
		if !await(a.done, a.sent, surveyTime) && time.Since(a.sent) >= hungAfter {
			out = append(out, Displaced{Level: a.ask.image.Level, Path: a.ask.image.Path, How: PathSilent})
			continue
		}
		if is := a.ask.last.Load(); is != nil && is.How != "" {
			out = append(out, *is)
		}
	}
	return slices.Clip(out)
}

func sameFile(a, b ImageStatus) bool {
	return a.Path == b.Path && a.Level == b.Level && a.Dev == b.Dev && a.Ino == b.Ino
}

// lookUp says whether an image's file is at its path. It hangs with its storage.
func lookUp(im *ImageStatus) *Displaced {
	d := &Displaced{Level: im.Level, Path: im.Path}
	var st unix.Stat_t
	err := unix.Stat(im.Path, &st)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		d.How = PathGone
	case err != nil:
		d.How, d.Error = PathError, err.Error()
	case st.Mode&unix.S_IFMT == unix.S_IFBLK && im.Rdev != 0:
		// The name of a device may be made anew.
		if uint64(st.Rdev) != im.Rdev {
			d.How = PathOther
		}
	case uint64(st.Dev) != im.Dev || st.Ino != im.Ino:
		d.How = PathOther
	}
	return d
}

// String says it in words.
func (d Displaced) String() string {
	switch d.How {
	case PathGone:
		return fmt.Sprintf("level %d is served from a file that is no longer at its path %q: it was deleted or renamed, or its mount is gone", d.Level, d.Path)
	case PathOther:
		return fmt.Sprintf("level %d is served from a file that is no longer at its path: %q is another file now", d.Level, d.Path)
	case PathError:
		return fmt.Sprintf("whether level %d is served from the file at its path %q is not known: %s", d.Level, d.Path, d.Error)
	}
	return fmt.Sprintf("whether level %d is served from the file at its path %q is not known: looking it up hangs", d.Level, d.Path)
}
