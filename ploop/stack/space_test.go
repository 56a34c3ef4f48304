package stack

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// smallStorage has room for a file of so many bytes, and counts how often it is asked for more.
type smallStorage struct {
	storage.File
	room  int64
	asked int
}

func (f *smallStorage) Allocate(off, n int64) (bool, error) {
	f.asked++
	if off+n > f.room {
		return false, unix.ENOSPC
	}
	return f.File.Allocate(off, n)
}

// TestGrowFull: a file that can't grow costs one request of its file system for each try,
// after the first, and grows in large steps again when it can.
func TestGrowFull(t *testing.T) {
	const cluster = 64 << 10
	path := filepath.Join(memDir(t), "image")
	if err := ploop.Create(path, ploop.CreateOptions{Size: 1 << 30, ClusterSize: cluster}); err != nil {
		t.Fatal(err)
	}
	f := &smallStorage{room: 100 * cluster}
	s, err := Open([]image.Ref{{Path: path}}, Options{open: func(p string, w, d bool) (_ storage.File, err error) {
		f.File, err = storage.Open(p, w, d)
		return f, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := storage.AlignedBuffer(4096)
	p[0] = 1
	n := int64(0)
	for ; err == nil; n++ {
		_, err = s.WriteAt(p, n*cluster)
	}
	if !errors.Is(err, unix.ENOSPC) || n < 99 {
		t.Fatalf("%d clusters, then %v", n-1, err)
	}
	f.asked = 0
	for range 10 {
		if _, err := s.WriteAt(p, n*cluster); !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	if f.asked != 10 {
		t.Errorf("10 tries asked %d times", f.asked)
	}
	f.room, f.asked = 1<<40, 0
	for i := n; i < n+1000; i++ {
		if _, err := s.WriteAt(p, i*cluster); err != nil {
			t.Fatal(err)
		}
	}
	if f.asked > 11 { // 1, 2, 4, … 512
		t.Errorf("1000 clusters took %d steps", f.asked)
	}
}

// countedMemory sees how large the pieces are that are read and written.
type countedMemory struct {
	storage.File
	most int
}

func (f *countedMemory) ReadAt(p []byte, off int64) (int, error) {
	f.most = max(f.most, len(p))
	return f.File.ReadAt(p, off)
}

func (f *countedMemory) WriteAt(p []byte, off int64) (int, error) {
	f.most = max(f.most, len(p))
	return f.File.WriteAt(p, off)
}

// TestCopyUpPieces: a copy-up takes little memory, also with large clusters, and copies right.
func TestCopyUpPieces(t *testing.T) {
	const cluster = 4 << 20
	var refs []image.Ref
	dir := memDir(t)
	for _, name := range []string{"base", "top"} {
		p := filepath.Join(dir, name)
		if err := ploop.Create(p, ploop.CreateOptions{Size: 2 * cluster, ClusterSize: cluster}); err != nil {
			t.Fatal(err)
		}
		refs = append(refs, image.Ref{Path: p})
	}
	want := make([]byte, 2*cluster)
	for i := range want {
		want[i] = byte(i>>9 + i>>17)
	}
	s, err := Open(refs[:1], Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var files []*countedMemory
	s, err = Open(refs, Options{open: func(p string, w, d bool) (storage.File, error) {
		f, err := storage.Open(p, w, d)
		files = append(files, &countedMemory{File: f})
		return files[len(files)-1], err
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, f := range files {
		f.most = 0
	}
	// Over the border of two pieces, and zeroes in another place.
	p := storage.AlignedBuffer(8192)
	for i := range p {
		p[i] = 0xa5
	}
	at := int64(copyPiece - 4096)
	copy(want[at:], p)
	clear(want[cluster+at : cluster+at+8192])
	if _, err := s.WriteAt(p, at); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteZeroes(cluster+at, 8192, false); err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		if f.most == 0 || f.most > copyPiece {
			t.Errorf("image %d: a piece of %d bytes", i, f.most)
		}
	}
	got := storage.AlignedBuffer(2 * cluster)
	if _, err := s.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Error("the disk isn't what it was, but for what was written")
	}
}

// TestFreeSpace: from the places in use the allocator finds exactly the gaps,
// and never gives a place twice.
func TestFreeSpace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(1, 300).Draw(t, "n")
		used := make(format.Positions, (n+63)/64)
		in := rapid.SliceOfDistinct(rapid.Uint64Range(0, n-1), func(i uint64) uint64 { return i }).Draw(t, "used")
		for _, i := range in {
			used.Add(i)
		}
		if got := slices.Collect(used.All()); !slices.Equal(got, slices.Sorted(slices.Values(in))) {
			t.Fatalf("all gives %v of %v", got, in)
		}
		var p space
		p.load(used)
		end := uint64(0)
		for _, i := range in {
			end = max(end, i+1)
		}
		if p.next != end || p.have != end || p.usedEnd() != end || p.free.N != end-uint64(len(in)) {
			t.Fatalf("%d of %d in use: next %d, have %d, %d free", len(in), end, p.next, p.have, p.free.N)
		}
		for i := range end {
			if p.free.Has(i) == used.Has(i) {
				t.Fatalf("place %d is both or neither", i)
			}
		}
	})
}
