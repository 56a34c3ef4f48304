package stack

import (
	"bytes"
	"path/filepath"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// TestManyEntries: as many BAT entries as QEMU makes and opens, at the cost of
// what is stored.
func TestManyEntries(t *testing.T) {
	if testing.Short() {
		t.Skip("reads gigabytes of holes")
	}
	dir := memDir(t)
	const cluster = 64 << 10
	data := bytes.Repeat([]byte("x"), 4096)
	for name, size := range map[string]int64{"8T": 8 << 40, "all": format.MaxBATEntries * cluster} {
		ref := mustCreate(t, filepath.Join(dir, name), ploop.CreateOptions{Size: size, ClusterSize: cluster})
		before := residentMemory(t)
		s := mustOpen(t, []image.Ref{ref}, Options{})
		for _, off := range []int64{0, size / 2 / cluster * cluster, size - 4096} {
			if _, err := s.WriteAt(data, off); err != nil {
				t.Fatal(err)
			}
		}
		if n := (residentMemory(t) - before) >> 20; n > 64 {
			t.Errorf("%d MiB for three clusters of %s", n, name)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if i, err := ploop.ReadInfo(ref); err != nil || i.Allocated != 3 {
			t.Errorf("%s: %+v, %v", name, i, err)
		}
	}
	if err := ploop.Create(filepath.Join(dir, "more"), ploop.CreateOptions{Size: (format.MaxBATEntries + 1) * cluster, ClusterSize: cluster}); err == nil {
		t.Error("one entry more than QEMU takes is made")
	}
}

// TestManyEntriesOfQEMU: the same of an image that QEMU made, and back.
func TestManyEntriesOfQEMU(t *testing.T) {
	if testing.Short() {
		t.Skip("QEMU writes half a gigabyte")
	}
	ref := image.Ref{Path: filepath.Join(t.TempDir(), "8T")}
	mustQEMU(t, "qemu-img", "create", "-q", "-f", "parallels", "-o", "cluster_size=65536", ref.Path, "8T")
	s := mustOpen(t, []image.Ref{ref}, Options{})
	if _, err := s.WriteAt(bytes.Repeat([]byte("x"), 4096), 8<<40-4096); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustQEMU(t, "qemu-io", "-f", "parallels", "-r", "-c", "read -P 0x78 8796093018112 4096", ref.Path)
}
