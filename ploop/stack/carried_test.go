package stack

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

func transitImage() *smallImage {
	return newSmallImage(2).withBitmap(format.Section{Magic: 2, Flags: format.SectionTransit, Data: []byte("carried along")})
}

// TestCarriedTail: behind what an unknown section may refer to, a file that
// doesn't end with a cluster must not lend its tail to new clusters.
func TestCarriedTail(t *testing.T) {
	im := transitImage()
	tail := bytes.Repeat([]byte{0xaa}, 3*image.SectorSize)
	im.b = append(im.b, tail...)
	at := len(im.b) - len(tail)
	ref := writeSmall(t, im)
	s := mustOpen(t, []image.Ref{ref}, Options{})
	sector := bytes.Repeat([]byte{7}, image.SectorSize)
	for i := range s.clusters { // one sector of each cluster that has none yet
		if !s.table.Load(i).Mapped() {
			if _, err := s.WriteAt(sector, int64(i)*s.cluster); err != nil {
				t.Fatal(err)
			}
			rest := make([]byte, s.cluster-image.SectorSize)
			if _, err := s.ReadAt(rest, int64(i)*s.cluster+image.SectorSize); err != nil || !storage.AllZero(rest) {
				t.Fatalf("cluster %d: sectors that were never written aren't zero (%v)", i, err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(ref.Path)
	if err != nil || !bytes.Equal(now[at:at+len(tail)], tail) {
		t.Errorf("the tail that may be somebody's was overwritten (%v)", err)
	}
}

// TestCarriedSize: opening and closing again and again must not grow the file.
func TestCarriedSize(t *testing.T) {
	ref := writeSmall(t, transitImage())
	var sizes []int64
	for range 4 {
		s := mustOpen(t, []image.Ref{ref}, Options{})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(ref.Path)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, fi.Size())
	}
	if sizes[3] != sizes[0] {
		t.Errorf("the file grows without a write: %d", sizes)
	}
	mustCheck(t, ploop.ExitClean, ref)
}

// TestNecessaryBitmap: a bitmap that must be understood and can't be loaded
// keeps the image from being written.
func TestNecessaryBitmap(t *testing.T) {
	im := newSmallImage(2)
	ref := writeSmall(t, im.withExtension(format.Section{Magic: format.BitmapMagic, Flags: format.SectionNeeded, Data: []byte("too short")}))
	if _, err := Open([]image.Ref{ref}, Options{}); !errors.Is(err, image.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

// TestEmptyFlag: software that believes in the flag must not find it on an
// image with data.
func TestEmptyFlag(t *testing.T) {
	im := newSmallImage(2)
	im.put32(52, format.FlagEmpty)
	ref := writeSmall(t, im)
	s := mustOpen(t, []image.Ref{ref}, Options{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(ref.Path)
	if err != nil || b[52] != 0 {
		t.Errorf("flags %#x after writing (%v)", b[52], err)
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

// TestFailedWriteKeepsLost: a write of the index that fails mends no sector
// that an earlier sync may have lost.
func TestFailedWriteKeepsLost(t *testing.T) {
	_, s := faultScene(t)
	x := &s.index
	x.written(s, []int64{0}, x.syncFailed.Load(), true, func() {})
	x.lose(s)
	if x.lost.n.Load() != 1 {
		t.Fatalf("%d sectors lost", x.lost.n.Load())
	}
	x.written(s, []int64{0}, x.syncFailed.Load(), false, func() {})
	if x.lost.n.Load() != 1 {
		t.Error("a failed write made it forget")
	}
	x.written(s, []int64{0}, x.syncFailed.Load(), true, func() {})
	if x.lost.n.Load() != 0 {
		t.Error("a write that succeeded did not mend it")
	}
}

// TestTakenOverThroughThePageCache: what the cache has of the index of a server that died needn't
// be on the disk. It is written again before a flush is acknowledged.
func TestTakenOverThroughThePageCache(t *testing.T) {
	for _, cached := range []bool{true, false} {
		path := filepath.Join(t.TempDir(), "top")
		if err := ploop.Create(path, ploop.CreateOptions{Size: 1 << 20, ClusterSize: 64 << 10}); err != nil {
			t.Fatal(err)
		}
		refs, o := []image.Ref{{Path: path}}, Options{NoDirect: cached, TakeOver: true}
		s, err := Open(refs, o)
		if err != nil {
			t.Fatal(err)
		}
		if s.Status().Images[0].Cached != cached {
			s.Close()
			continue // this file system has no direct I/O
		}
		if _, err := s.WriteAt(bytes.Repeat([]byte{1}, 4096), 0); err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		s.closeFiles() // it dies: the mark stays
		if s, err = Open(refs, o); err != nil {
			t.Fatal(err)
		}
		if lost := s.index.lost.n.Load() != 0; lost != cached {
			t.Errorf("cached %t: index distrusted %t", cached, lost)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		if n := s.index.lost.n.Load(); n != 0 {
			t.Errorf("%d sectors were not written again", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err = Open(refs, o); err != nil {
			t.Fatal(err)
		}
		if s.index.lost.n.Load() != 0 {
			t.Error("an image that was closed is distrusted")
		}
		s.Close()
	}
}
