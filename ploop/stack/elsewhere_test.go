package stack

import (
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

// partlyDead is a file of which reads of a range fail.
type partlyDead struct {
	storage.File
	from, to int64
	reads    int
}

func (f *partlyDead) ReadAt(p []byte, off int64) (int, error) {
	f.reads++
	if off < f.to && f.from < off+int64(len(p)) {
		return 0, unix.EIO
	}
	return f.File.ReadAt(p, off)
}

// TestElsewhere tells a bad place from storage that answers nothing but its first page.
func TestElsewhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "top")
	const cluster = 64 << 10
	if err := ploop.Create(path, ploop.CreateOptions{Size: 8 << 20, ClusterSize: cluster}); err != nil {
		t.Fatal(err)
	}
	s, err := Open([]image.Ref{{Path: path}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f := &partlyDead{File: s.deltas[0].File}
	s.deltas[0].File = f
	defer func() { s.deltas[0].File = f.File }()
	ask := func(off, n int64) error {
		f.reads = 0
		err := s.Elsewhere(0, off, n)
		if f.reads > otherPlaces+1 {
			t.Errorf("%d reads", f.reads)
		}
		return err
	}
	// Of an empty image there is the header.
	if err := ask(cluster, 4096); err != nil {
		t.Errorf("an empty image: %v", err)
	}
	p := make([]byte, cluster)
	p[0] = 1
	for i := range int64(16) {
		if _, err := s.WriteAt(p, i*cluster); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := ask(3*cluster, 4096); err != nil {
		t.Errorf("a file that answers: %v", err)
	}
	f.from, f.to = 3*cluster, 4*cluster
	if err := ask(3*cluster, 4096); err != nil {
		t.Errorf("a bad cluster: %v", err)
	}
	// Neither does the index count.
	f.from, f.to = cluster, 1<<40
	for _, clusters := range []int64{17, 16, 9, 3, 2} {
		if err := unix.Truncate(path, clusters*cluster-cluster/2); err != nil {
			t.Fatal(err)
		}
		if err := ask(cluster, 4096); clusters > 2 && !errors.Is(err, unix.EIO) {
			t.Errorf("only the index of %d clusters answers: %v", clusters, err)
		}
	}
	if err := unix.Truncate(path, 17*cluster); err != nil {
		t.Fatal(err)
	}
	if err := ask(3*cluster, 4096); !errors.Is(err, unix.EIO) {
		t.Errorf("only the first page answers: %v", err)
	}
	f.from, f.to = 0, 0
	if err := ask(0, 1<<40); err == nil || f.reads != 0 {
		t.Errorf("the range is the whole file: %v after %d reads", err, f.reads)
	}
	if s.Elsewhere(1, 0, 1) == nil || s.Elsewhere(-1, 0, 1) == nil {
		t.Error("there is no such level")
	}
}
