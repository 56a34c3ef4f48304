package target

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kind is a kind of target.
type Kind string

// The kinds that are known.
const (
	LIO  Kind = "lio"  // the kernel's, by configfs
	SCST Kind = "scst" // by its sysfs tree
	TGT  Kind = "tgt"  // the daemon tgtd, by tgtadm
)

// Kinds are all of them.
var Kinds = []Kind{LIO, SCST, TGT}

// A Backing is something that a target exports, or is ready to.
type Backing struct {
	Name  string   // the target's own name for it
	Path  string   // as it was configured
	Disks []string // kernel names of the disks below it ("ublkb0"), sorted
}

// KindState is what there is of one kind of target.
type KindState struct {
	Kind     Kind
	Present  bool      // it runs
	Backings []Backing // by name
	// Err is why it could not be read now. The rest is then of the last time
	// that it could.
	Err error
}

// Roots are where things are; an empty one is its default.
type Roots struct {
	Configfs string // /sys/kernel/config
	SCST     string // /sys/kernel/scst_tgt
	Sys      string // /sys
	Proc     string // /proc
	TgtAdm   string // tgtadm, found by PATH
	// Number is the device number of a block device's node; nil: stat(2).
	Number func(path string) (major, minor uint32, ok bool)
	// Output runs a program and gives what it writes to its standard output; nil: os/exec
	// does it.
	Output func(ctx context.Context, name string, args ...string) ([]byte, error)
}

func (r Roots) complete() Roots {
	set := func(s *string, def string) {
		if *s == "" {
			*s = def
		}
	}
	set(&r.Configfs, "/sys/kernel/config")
	set(&r.SCST, "/sys/kernel/scst_tgt")
	set(&r.Sys, "/sys")
	set(&r.Proc, "/proc")
	set(&r.TgtAdm, "tgtadm")
	if r.Number == nil {
		r.Number = deviceNumber
	}
	if r.Output == nil {
		r.Output = func(ctx context.Context, name string, args ...string) ([]byte, error) {
			cmd := exec.CommandContext(ctx, name, args...)
			cmd.Dir = "/"
			return cmd.Output()
		}
	}
	return r
}

func deviceNumber(path string) (major, minor uint32, ok bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, 0, false
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev), true
}

// Scan takes one picture of some kinds of target.
func Scan(r Roots, kinds []Kind) []KindState {
	return newScanner(r, kinds).scan()
}

// Watch calls seen with the first picture, and then with each that differs from the one
// before, until ctx ends. It looks every interval.
func Watch(ctx context.Context, r Roots, kinds []Kind, interval time.Duration, seen func([]KindState)) {
	s := newScanner(r, kinds)
	var last []KindState
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		if now := s.scan(); last == nil || !reflect.DeepEqual(texts(now), texts(last)) {
			seen(now)
			last = now
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// texts makes pictures comparable: two errors are the same if they say the same.
func texts(states []KindState) []KindState {
	out := slices.Clone(states)
	for i := range out {
		if out[i].Err != nil {
			out[i].Err = errors.New(out[i].Err.Error())
		}
	}
	return out
}

// scanner remembers what it last knew of each kind.
type scanner struct {
	Roots
	kinds []Kind
	last  map[Kind]KindState
	tgt   tgtCache
	asked map[string]chan number // questions that have not been answered, by path
	hung  bool                   // one of those of the present path
}

func newScanner(r Roots, kinds []Kind) *scanner {
	return &scanner{Roots: r.complete(), kinds: kinds, last: map[Kind]KindState{}, asked: map[string]chan number{}}
}

func (s *scanner) scan() []KindState {
	out := make([]KindState, 0, len(s.kinds))
	for _, k := range s.kinds {
		st := KindState{Kind: k}
		switch k {
		case LIO:
			st.Present, st.Backings, st.Err = s.lio()
		case SCST:
			st.Present, st.Backings, st.Err = s.scst()
		case TGT:
			st.Present, st.Backings, st.Err = s.tgtd()
		}
		if st.Err != nil {
			last := s.last[k]
			st.Present, st.Backings = last.Present || st.Present, last.Backings
		} else {
			for i := range st.Backings {
				disks, ok := s.disks(st.Backings[i].Path)
				if !ok {
					disks = s.known(k, st.Backings[i])
				}
				st.Backings[i].Disks = disks
			}
			slices.SortFunc(st.Backings, func(a, b Backing) int { return strings.Compare(a.Name, b.Name) })
			s.last[k] = st
		}
		out = append(out, st)
	}
	return out
}

// list reads a directory; what isn't there is empty.
func list(dir string) (names []string, there bool, err error) {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOTDIR):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, true, nil
}

// maxAttr bounds what is read of one file, in bytes.
const maxAttr = 1 << 20

// attr reads a file; "" for one that is gone, or has nothing.
func attr(path ...string) (string, error) {
	f, err := os.Open(filepath.Join(path...))
	if err == nil {
		defer f.Close()
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(f, maxAttr)); err == nil {
			return strings.TrimSpace(string(b)), nil
		}
	}
	// EINVAL is configfs' way to say that something was not set yet.
	for _, nothing := range []unix.Errno{unix.ENOENT, unix.ENOTDIR, unix.ENODEV, unix.EINVAL} {
		if errors.Is(err, nothing) {
			return "", nil
		}
	}
	return "", err
}
