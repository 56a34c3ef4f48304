package stack

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

func rawFile(t *testing.T, size int64) image.Ref {
	t.Helper()
	ref := image.Ref{Path: filepath.Join(t.TempDir(), "raw"), Raw: true}
	if err := os.WriteFile(ref.Path, bytes.Repeat([]byte{'r'}, int(size)), 0o600); err != nil {
		t.Fatal(err)
	}
	return ref
}

func resize(t *testing.T, ref image.Ref, size int64) {
	t.Helper()
	if err := os.Truncate(ref.Path, size); err != nil {
		t.Fatal(err)
	}
}

// TestRawGrown: a raw image that its owner has lengthened is served with the size that the
// disk has.
func TestRawGrown(t *testing.T) {
	const size = 3<<20 + 512
	ref := rawFile(t, size)
	for _, now := range []int64{size, size + 512, size + 32<<20, size + 1} {
		resize(t, ref, now)
		s := mustOpen(t, []image.Ref{ref}, Options{TakeOver: true, Size: size})
		if s.Size() != size {
			t.Errorf("%d bytes, want %d", s.Size(), size)
		}
		if _, err := s.WriteAt(letters('x')[:512], size-512); err != nil {
			t.Error(err)
		}
		if _, err := s.WriteAt(letters('x')[:512], size); !errors.Is(err, ErrRange) {
			t.Errorf("past the end: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if fi, _ := os.Stat(ref.Path); fi.Size() != now {
			t.Errorf("the file has %d bytes, and had %d", fi.Size(), now)
		}
	}
	resize(t, ref, size-512)
	if s, err := Open([]image.Ref{ref}, Options{TakeOver: true, Size: size}); err == nil {
		s.Close()
		t.Error("a shorter one is served")
	} else if !errors.Is(err, image.ErrDiverged) {
		t.Error(err)
	}
}

// TestRawBaseGrown: below a top, what a base has got since is no part of the disk.
func TestRawBaseGrown(t *testing.T) {
	const size, was = 4 << 20, 1<<20 + 512
	for _, now := range []int64{was, was + 4096, size, size + 8<<20, size + 8<<20 + 100} {
		base := rawFile(t, was)
		top := mustCreate(t, filepath.Join(t.TempDir(), "top"), ploop.CreateOptions{Size: size, ClusterSize: 64 << 10})
		refs := []image.Ref{base, top}
		s := mustOpen(t, refs, Options{})
		if err := os.WriteFile(base.Path, bytes.Repeat([]byte{'r'}, int(now)), 0o600); err != nil {
			t.Fatal(err)
		}
		verify := func(s *Stack) {
			t.Helper()
			p := storage.AlignedBuffer(size)
			if _, err := s.ReadAt(p, 0); err != nil || s.Size() != size {
				t.Errorf("%d bytes, %v", s.Size(), err)
			}
			if !bytes.Equal(p[:was], bytes.Repeat([]byte{'r'}, was)) || len(bytes.Trim(p[was:], "\x00")) > 0 {
				t.Errorf("grown to %d: the disk has other content", now)
			}
		}
		h, next := mustSucceed(t, s, Succession{Refs: refs, Reopen: []bool{true, false}, Drained: true})
		commit(t, h)
		verify(next)
		if err := next.closeFiles(); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, refs, Options{TakeOver: true, Continue: true, Size: size, RawSize: was})
		verify(s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSucceedRawGrown: a raw top of a live disk may have become longer, not shorter.
func TestSucceedRawGrown(t *testing.T) {
	const size = 2 << 20
	ref := rawFile(t, size)
	s := mustOpen(t, []image.Ref{ref}, Options{})
	for _, force := range []bool{false, true} {
		resize(t, ref, size+1<<20)
		c := Succession{Refs: []image.Ref{ref}, Reopen: []bool{true}, Drained: true, Force: force}
		h, next := mustSucceed(t, s, c)
		commit(t, h)
		if s = next; s.Size() != size {
			t.Errorf("%d bytes", s.Size())
		}
		resize(t, ref, size-512)
		h = begin(t, s)
		if _, err := h.Prepare(c); err == nil {
			t.Fatal("a shorter one is taken")
		}
		if err := h.Abort(); err != nil {
			t.Fatal(err)
		}
	}
	resize(t, ref, size)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestTruncatedRawBase: what a raw base lost while it was open is an error and
// not zeroes, which COW would make last.
func TestTruncatedRawBase(t *testing.T) {
	dir := memDir(t)
	raw := image.Ref{Path: filepath.Join(dir, "raw"), Raw: true}
	if err := os.WriteFile(raw.Path, bytes.Repeat([]byte{5}, 5*4096+image.SectorSize), 0o600); err != nil {
		t.Fatal(err)
	}
	top := makeImage(t, filepath.Join(dir, "top"), 2, 8, 8*8)
	s := mustOpen(t, []image.Ref{raw, top}, Options{})
	defer s.Close()
	sector := make([]byte, image.SectorSize)
	sector[0] = 1
	if _, err := s.WriteAt(sector, 5*4096); err != nil {
		t.Fatalf("the base's own partial end: %v", err)
	}
	if err := os.Truncate(raw.Path, 2*4096); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WriteAt(sector, 4*4096); err == nil {
		t.Error("zeroes were copied up in place of what the base lost")
	}
	if _, err := s.ReadAt(sector, 3*4096); err == nil {
		t.Error("zeroes were read in place of what the base lost")
	}
}
