package stack

import (
	"bytes"
	"path/filepath"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
)

// TestFailedWriteKeepsLost: a write of the index that fails mends no sector
// that an earlier sync may have lost.
func TestFailedWriteKeepsLost(t *testing.T) {
	_, s := faultScene(t)
	x := &s.index
	x.written(s, 0, 512, x.syncFailed.Load(), true, func() {})
	x.lose(s)
	if x.lost.n.Load() != 1 {
		t.Fatalf("%d sectors lost", x.lost.n.Load())
	}
	x.written(s, 0, 512, x.syncFailed.Load(), false, func() {})
	if x.lost.n.Load() != 1 {
		t.Error("a failed write made it forget")
	}
	x.written(s, 0, 512, x.syncFailed.Load(), true, func() {})
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
