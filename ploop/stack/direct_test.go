package stack

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/hack/faultfs"
	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

// storages are what this machine can mount, by name.
var storages = map[string]struct {
	mount          func(t testing.TB) string
	direct, cached bool
	unit           int64
}{
	"ext4":           {mounted(512, "rw", "mkfs.ext4", "-q"), true, false, 512},
	"ext4, journal":  {mounted(512, "data=journal", "mkfs.ext4", "-q"), false, true, 512},
	"ext4, 4Kn":      {mounted(4096, "rw", "mkfs.ext4", "-q"), true, false, 4096},
	"xfs":            {mounted(512, "rw", "mkfs.xfs", "-q"), true, false, 512},
	"xfs, 4Kn":       {mounted(4096, "rw", "mkfs.xfs", "-q"), true, false, 4096},
	"tmpfs":          {func(t testing.TB) string { return memDir(t) }, false, true, 512},
	"FUSE":           {fuse(faultfs.Options{}), true, false, 512},
	"FUSE, O_DIRECT": {fuse(faultfs.Options{OneWriter: true}), true, false, 512},
}

func mounted(block int, options string, mkfs ...string) func(testing.TB) string {
	size := int64(64 << 20)
	if mkfs[0] == "mkfs.xfs" {
		size = 512 << 20
	}
	return func(t testing.TB) string {
		needRoot(t)
		return mountAt(t, blockDevice(t, size, block), options, mkfs...)
	}
}

func fuse(o faultfs.Options) func(testing.TB) string {
	return func(t testing.TB) string {
		needRoot(t)
		s, err := faultfs.Mount(t.TempDir(), t.TempDir(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s.Dir
	}
}

// TestDirect wants direct I/O where it is of use, in the right units, and believed where the
// page cache is known not to be used.
func TestDirect(t *testing.T) {
	for name, c := range storages {
		t.Run(name, func(t *testing.T) {
			dir := c.mount(t)
			if name == "tmpfs" && strings.HasPrefix(dir, os.TempDir()) {
				t.Skip("there is none")
			}
			raw := filepath.Join(dir, "raw")
			if err := os.WriteFile(raw, bytes.Repeat([]byte{1}, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			img := mustCreate(t, filepath.Join(dir, "img"), ploop.CreateOptions{Size: 8 << 20})
			sparse := filepath.Join(dir, "sparse")
			if err := os.WriteFile(sparse, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(sparse, 1<<20); err != nil {
				t.Fatal(err)
			}
			for _, ref := range []image.Ref{{Path: raw, Raw: true}, {Path: sparse, Raw: true}, img} {
				for _, readOnly := range []bool{false, true} {
					s := mustOpen(t, []image.Ref{ref}, Options{ReadOnly: readOnly})
					im, f := s.Status().Images[0], s.top.File.(*storage.OSFile)
					if im.Direct != c.direct || im.Cached != c.cached || f.Direct.Unit != c.unit {
						t.Errorf("%v: %+v, units of %d", ref, im, f.Direct.Unit)
					}
					fl, err := unix.FcntlInt(uintptr(f.FD), unix.F_GETFL, 0)
					if err != nil || fl&unix.O_DIRECT != 0 != c.direct || fl&unix.O_NONBLOCK != 0 {
						t.Errorf("%v: flags %#x, %v", ref, fl, err)
					}
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// TestTakenOverFromAJournal: a file system that caches although it takes O_DIRECT isn't
// trusted with what it has of a dead server's index.
func TestTakenOverFromAJournal(t *testing.T) {
	ref := mustCreate(t, filepath.Join(storages["ext4, journal"].mount(t), "img"), ploop.CreateOptions{Size: 8 << 20})
	s := mustOpen(t, []image.Ref{ref}, Options{})
	if _, err := s.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	s.closeFiles() // it dies
	s = mustOpen(t, []image.Ref{ref}, Options{TakeOver: true})
	if s.index.lost.n.Load() == 0 {
		t.Error("the index is trusted")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestFirstWriteFindsThePageCache: where the kernel can't be asked, the page cache is looked at.
func TestFirstWriteFindsThePageCache(t *testing.T) {
	needRoot(t)
	memory := t.TempDir()
	if err := unix.Mount("none", memory, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(memory, unix.MNT_DETACH)
	for dir, cached := range map[string]bool{memory: true, storages["ext4"].mount(t): false} {
		path := filepath.Join(dir, "holdfast-first-write")
		if err := os.WriteFile(path, make([]byte, 128<<10), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := storage.OpenFile(path, true, false, true)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if !cached && !f.Direct.Bypasses {
			t.Fatalf("%s has no direct I/O", dir)
		}
		if cached && f.SetDirect(true) != nil {
			t.Skip("tmpfs doesn't take O_DIRECT before Linux 6.6")
		}
		f.Direct = storage.Direct{On: true, Bypasses: true, Unit: 4096, Memory: 4096}
		if _, err := f.WriteAt(storage.AlignedBuffer(4096), 0); err != nil {
			t.Fatal(err)
		}
		f.WroteFirst()
		if f.Direct.Bypasses == cached {
			t.Errorf("%s: direct I/O is believed: %v", dir, f.Direct.Bypasses)
		}
	}
}

// TestUnits writes by sectors where the storage takes 4096 bytes only.
func TestUnits(t *testing.T) {
	for _, name := range []string{"ext4, 4Kn", "xfs, 4Kn"} {
		t.Run(name, func(t *testing.T) {
			dir, rng := storages[name].mount(t), rand.New(rand.NewPCG(1, 2))
			raw := image.Ref{Path: filepath.Join(dir, "raw"), Raw: true}
			base := bytes.Repeat([]byte{7}, 4<<20-512) // its end is in no whole unit
			if err := os.WriteFile(raw.Path, base, 0o600); err != nil {
				t.Fatal(err)
			}
			at := func(name string) string { return filepath.Join(dir, name) }
			whole := image.Ref{Path: at("whole"), Raw: true}
			if err := os.WriteFile(whole.Path, make([]byte, 4<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				refs   []image.Ref
				direct bool
			}{
				{[]image.Ref{mustCreate(t, at("v2"), ploop.CreateOptions{Size: 8<<20 + 512, ClusterSize: 64 << 10})}, true},
				{[]image.Ref{mustCreate(t, at("v1"), ploop.CreateOptions{Size: 8 << 20, ClusterSize: 64 << 10, Version: 1})}, true},
				{[]image.Ref{raw, mustCreate(t, at("over"), ploop.CreateOptions{Size: 4 << 20, ClusterSize: 64 << 10})}, true},
				{[]image.Ref{whole}, true},
				{[]image.Ref{raw}, false},
				{[]image.Ref{mustCreate(t, at("63"), ploop.CreateOptions{Size: 8 << 20, ClusterSize: 63 << 9, Version: 1})}, false},
			} {
				top := c.refs[len(c.refs)-1]
				disk := scatter(t, c.refs, rng, 40)
				if got := readDisk(t, c.refs...); !bytes.Equal(got, disk) {
					t.Errorf("%v: the disk reads otherwise", top)
				}
				mustCheck(t, ploop.ExitClean, top)
				s := mustOpen(t, c.refs, Options{})
				if d := s.Status().Images[len(c.refs)-1].Direct; d != c.direct {
					t.Errorf("%v: direct %v", top, d)
				}
				if err := s.WriteZeroes(512, 1<<20, false); err != nil {
					t.Errorf("%v: zeroes: %v", top, err)
				}
				clear(disk[512 : 512+1<<20])
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if got := readDisk(t, c.refs...); !bytes.Equal(got, disk) {
					t.Errorf("%v: the disk reads otherwise after zeroing", top)
				}
			}
			if got, err := os.ReadFile(raw.Path); err != nil || len(got) != len(base) {
				t.Errorf("the raw image has %d bytes now, %v", len(got), err)
			}
		})
	}
}

// TestUnitsAlone: what a small write writes back of its neighbours must not be older than what a
// fast transfer wrote there meanwhile.
func TestUnitsAlone(t *testing.T) {
	for _, control := range []bool{false, true} {
		ref := mustCreate(t, filepath.Join(storages["ext4, 4Kn"].mount(t), "img"), ploop.CreateOptions{Size: 8 << 20})
		s := mustOpen(t, []image.Ref{ref}, Options{})
		s.grace.skip = control
		block := storage.AlignedBuffer(8 * image.SectorSize)
		block[0] = 9
		if _, err := s.WriteAt(block, 0); err != nil {
			t.Fatal(err)
		}
		r := s.NewReader()
		if at := r.Locate(512, 512, true); at.Where != Slow {
			t.Error("a sector is to be written as it is")
		}
		if at := r.Locate(4096, 512, false); at.Where != Slow {
			t.Error("a sector is to be read as it is")
		}
		at := r.Locate(0, len(block), true)
		if at.Where != Direct {
			t.Fatalf("a whole unit: %+v", at)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := s.WriteAt(bytes.Repeat([]byte{2}, image.SectorSize), 3*image.SectorSize)
			ended <- err
		}()
		early := false
		if control {
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			early = true
		}
		for !early && !s.table.Load(0).Busy() {
			time.Sleep(time.Millisecond)
		}
		if w := r.Locate(0, len(block), true); !early && w.Where != Slow {
			t.Error("a fast write may begin beside a small one")
			r.Leave(w.Token)
		}
		for i := range block {
			block[i] = 1
		}
		if _, err := unix.Pwrite(s.Fds()[at.Level], block, at.Offset); err != nil {
			t.Fatal(err)
		}
		r.Leave(at.Token)
		if !early {
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, len(block))
		if _, err := s.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		copy(block[3*image.SectorSize:], bytes.Repeat([]byte{2}, image.SectorSize))
		if bytes.Equal(got, block) == control {
			t.Errorf("control %v: the block reads as it should: %v", control, !control)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
