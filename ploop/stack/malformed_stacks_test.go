package stack

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
	"holdfast/ploop/image"
)

// Stacks whose files don't fit each other.
func TestMalformedStacks(t *testing.T) {
	create := func(t *testing.T, dir, name string, o ploop.CreateOptions) image.Ref {
		return mustCreate(t, filepath.Join(dir, name), o)
	}
	raw := func(t *testing.T, dir, name string, size int64) image.Ref {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		return image.Ref{Path: f.Name(), Raw: true}
	}
	small := ploop.CreateOptions{Size: 1 << 20, ClusterSize: 4096}
	for name, c := range map[string]struct {
		refs    func(t *testing.T, dir string) []image.Ref
		class   error
		says    string
		CheckOn int
	}{
		"cluster sizes": {func(t *testing.T, dir string) []image.Ref {
			return []image.Ref{create(t, dir, "a", ploop.CreateOptions{Size: 1 << 20, ClusterSize: 8192}), create(t, dir, "b", small)}
		}, image.ErrGeometry, "16 sectors, expected 8", 2},
		"larger base": {func(t *testing.T, dir string) []image.Ref {
			return []image.Ref{create(t, dir, "a", ploop.CreateOptions{Size: 2 << 20, ClusterSize: 4096}), create(t, dir, "b", small)}
		}, image.ErrGeometry, "4096 sectors, expected at most the 2048", 2},
		"larger raw base": {func(t *testing.T, dir string) []image.Ref {
			return []image.Ref{raw(t, dir, "a", 1<<20+4096), create(t, dir, "b", small)}
		}, image.ErrGeometry, "raw base", 2},
		"raw in the middle": {func(t *testing.T, dir string) []image.Ref {
			return []image.Ref{create(t, dir, "a", small), raw(t, dir, "b", 1<<20), create(t, dir, "c", small)}
		}, image.ErrGeometry, "only the base", 2},
		"raw of odd size": {func(t *testing.T, dir string) []image.Ref {
			return []image.Ref{raw(t, dir, "a", 1000)}
		}, image.ErrGeometry, "1000 bytes", 1},
		"empty raw": {func(t *testing.T, dir string) []image.Ref {
			return []image.Ref{raw(t, dir, "a", 0)}
		}, image.ErrGeometry, "0 bytes", 1},
		"raw of 1 EiB": {func(t *testing.T, dir string) []image.Ref {
			return []image.Ref{raw(t, dir, "a", 1<<60)}
		}, image.ErrLimit, "at most", 1},
		"same file twice": {func(t *testing.T, dir string) []image.Ref {
			a := create(t, dir, "a", small)
			b := image.Ref{Path: filepath.Join(dir, "b")}
			if err := os.Link(a.Path, b.Path); err != nil {
				t.Fatal(err)
			}
			return []image.Ref{a, b}
		}, image.ErrGeometry, "same file", 2},
		"dirty base": {func(t *testing.T, dir string) []image.Ref {
			a := create(t, dir, "a", small)
			f, err := os.OpenFile(a.Path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte{0x59, 0x6e, 0x6f, 0x74}, 44); err != nil {
				t.Fatal(err)
			}
			return []image.Ref{a, create(t, dir, "b", small)}
		}, image.ErrInUse, "not closed cleanly", 2},
		"254 images": {func(t *testing.T, dir string) []image.Ref {
			return make([]image.Ref, 254)
		}, image.ErrLimit, "253", 1},
		"no image": {func(t *testing.T, dir string) []image.Ref { return nil }, image.ErrGeometry, "at least one", 1},
		"directory": {func(t *testing.T, dir string) []image.Ref {
			return []image.Ref{{Path: dir}}
		}, image.ErrNotImage, "a directory", 1},
		"FIFO": {func(t *testing.T, dir string) []image.Ref {
			if err := unix.Mkfifo(filepath.Join(dir, "f"), 0o600); err != nil {
				t.Fatal(err)
			}
			return []image.Ref{{Path: filepath.Join(dir, "f")}}
		}, image.ErrNotImage, "a FIFO", 1},
		"character device": {func(t *testing.T, dir string) []image.Ref {
			return []image.Ref{{Path: "/dev/zero"}}
		}, image.ErrNotImage, "a character device", 1},
		"no file": {func(t *testing.T, dir string) []image.Ref {
			return []image.Ref{{Path: filepath.Join(dir, "none")}}
		}, syscall.ENOENT, "none", 1},
	} {
		t.Run(name, func(t *testing.T) {
			refs := c.refs(t, memDir(t))
			done := make(chan struct{})
			go func() {
				defer close(done)
				s, err := Open(refs, Options{})
				if err == nil {
					s.Close()
					t.Error("opens")
				} else if c.class != nil {
					WantLine(t, err, c.class, c.says)
				}
				r, err := ploop.Check(refs, ploop.CheckOptions{})
				code := 1
				if err == nil {
					code = r.ExitCode()
				} else if c.class != nil {
					WantLine(t, err, c.class, c.says)
				}
				if code != c.CheckOn {
					t.Errorf("check says %d, %v, want %d", code, err, c.CheckOn)
				}
			}()
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Fatal("hangs")
			}
		})
	}
}

// TestLocked: a writer excludes everyone, readers exclude writers.
func TestLocked(t *testing.T) {
	dir := memDir(t)
	ref := mustCreate(t, filepath.Join(dir, "a"), ploop.CreateOptions{Size: 1 << 20, ClusterSize: 4096})
	top := mustCreate(t, filepath.Join(dir, "b"), ploop.CreateOptions{Backing: &ref})
	refs := []image.Ref{ref}
	w := mustOpen(t, refs, Options{})
	_, err := Open(refs, Options{})
	WantLine(t, err, image.ErrLocked, ref.Path, "another process")
	_, err = Open(refs, Options{ReadOnly: true})
	WantLine(t, err, image.ErrLocked, ref.Path)
	_, err = Open([]image.Ref{ref, top}, Options{})
	WantLine(t, err, image.ErrLocked, ref.Path)
	_, err = ploop.Check(refs, ploop.CheckOptions{})
	WantLine(t, err, image.ErrLocked, ref.Path)
	if i, err := ploop.ReadInfo(ref); err != nil || !i.Locked || !i.InUse {
		t.Errorf("info of an image in use: %+v, %v", i, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r := mustOpen(t, refs, Options{ReadOnly: true})
	defer r.Close()
	mustCheck(t, ploop.ExitClean, ref) // looking is shared
	_, err = Open(refs, Options{})
	WantLine(t, err, image.ErrLocked, ref.Path)
	if err := mustOpen(t, []image.Ref{ref, top}, Options{}).Close(); err != nil {
		t.Fatal(err)
	}
}
