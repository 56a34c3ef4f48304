package stack

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

// TestDiscardIsAHint: without holes nothing is done for it, and where making one fails, it
// doesn't.
func TestDiscardIsAHint(t *testing.T) {
	const cluster = 64 * image.SectorSize
	for _, deltas := range []int{1, 2} {
		w := newSimWorld()
		var refs []image.Ref
		for _, name := range []string{"a", "b"}[:deltas] {
			refs = append(refs, w.addImage(name, 2, cluster/image.SectorSize, 16*cluster/image.SectorSize))
		}
		top := w.files[refs[deltas-1].Path]
		want := bytes.Repeat([]byte{5}, 8*cluster)
		scene := func(noHoles bool) *Stack {
			w.noHoles = noHoles
			s, err := Open(refs, Options{open: w.open})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.WriteAt(want, 0); err != nil {
				t.Fatal(err)
			}
			return s
		}
		read := func(s *Stack) []byte {
			got := make([]byte, len(want))
			if _, err := s.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			return got
		}

		s := scene(true)
		if u := s.DiscardUnit(); u != 0 {
			t.Errorf("discards are offered, by %d bytes", u)
		}
		done := 0
		w.fault = func(_ *simFile, kind string, _, _ int64) simFault {
			if kind != "read" {
				done++
			}
			return simFault{}
		}
		for _, r := range [][2]int64{{0, 16 * cluster}, {0, cluster}, {512, 1024}, {cluster - 512, 2 * cluster}} {
			if err := s.Discard(r[0], r[1]); err != nil {
				t.Error(err)
			}
		}
		if done != 0 || !bytes.Equal(read(s), want) {
			t.Errorf("%d deltas: %d operations for discards that can't do anything", deltas, done)
		}
		if err := s.Discard(16*cluster, 512); !errors.Is(err, ErrRange) {
			t.Errorf("beyond the disk: %v", err)
		}
		// Zeroes are no hint.
		if err := s.WriteZeroes(0, 3*cluster+512, false); err != nil {
			t.Fatal(err)
		}
		if got := read(s); !storage.AllZero(got[:3*cluster+512]) || !bytes.Equal(got[3*cluster+512:], want[3*cluster+512:]) {
			t.Error("zeroes are not written")
		}
		w.fault = nil
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}

		s = scene(false)
		holes := 0
		w.fault = func(f *simFile, kind string, _, _ int64) simFault {
			if kind == "zero" && f == top {
				holes++
				return simFault{err: unix.EIO}
			}
			return simFault{}
		}
		for _, r := range [][2]int64{{0, 2 * cluster}, {4*cluster + 512, 1024}} {
			if err := s.Discard(r[0], r[1]); err != nil {
				t.Errorf("a hole that can't be made fails the discard: %v", err)
			}
		}
		if holes == 0 {
			t.Error("no hole was tried: the test shows nothing")
		}
		w.fault = nil
		if got := read(s); !bytes.Equal(got[2*cluster:], want[2*cluster:]) {
			t.Error("what was beside it has changed")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHoles asks storage what it can do.
func TestHoles(t *testing.T) {
	ramfs := func(t testing.TB) string {
		needRoot(t)
		dir := t.TempDir()
		if err := unix.Mount("none", dir, "ramfs", 0, ""); err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		return dir
	}
	for name, c := range map[string]struct {
		mount func(testing.TB) string
		holes bool
	}{
		"ramfs": {ramfs, false}, "ext4": {storages["ext4"].mount, true}, "FUSE": {storages["FUSE"].mount, true},
		"tmpfs": {func(t testing.TB) string { return memDir(t) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := c.mount(t)
			const size = 8 << 20
			raw := image.Ref{Path: filepath.Join(dir, "raw"), Raw: true}
			if err := os.WriteFile(raw.Path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(raw.Path, size); err != nil {
				t.Fatal(err)
			}
			img := mustCreate(t, filepath.Join(dir, "img"), ploop.CreateOptions{Size: size, ClusterSize: 64 << 10})
			for _, ref := range []image.Ref{raw, img} {
				s := mustOpen(t, []image.Ref{ref}, Options{})
				want := int64(0)
				if c.holes {
					want = 64 << 10
				}
				if u := s.DiscardUnit(); (u != 0) != c.holes || !ref.Raw && u != want {
					t.Errorf("%v: discards by %d bytes", ref, u)
				}
				data := bytes.Repeat([]byte{3}, 1<<20)
				if _, err := s.WriteAt(data, 0); err != nil {
					t.Fatal(err)
				}
				if err := s.Flush(); err != nil {
					t.Fatal(err)
				}
				before := s.Status().Allocated
				f := s.top.File.(*storage.OSFile)
				pages := func() uint64 {
					var st unix.Cachestat_t
					if err := unix.Cachestat(uint(f.FD), &unix.CachestatRange{Len: 1 << 40}, &st, 0); err != nil {
						t.Skip(err)
					}
					return st.Cache
				}
				was := pages()
				if err := s.Discard(0, size); err != nil {
					t.Error(err)
				}
				if !c.holes && (pages() != was || s.Status().Allocated != before) {
					t.Errorf("%v: a discard without holes has written: %d pages, before %d", ref, pages(), was)
				}
				if c.holes && !ref.Raw && s.Status().Allocated != 0 {
					t.Errorf("%d clusters are left after the discard", s.Status().Allocated)
				}
				// What was given back, or not, is as good as new.
				if err := s.WriteZeroes(0, 1<<20, false); err != nil {
					t.Fatal(err)
				}
				if _, err := s.WriteAt(data[:512], 4096); err != nil {
					t.Fatal(err)
				}
				got, model := make([]byte, 1<<20), make([]byte, 1<<20)
				copy(model[4096:], data[:512])
				if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, model) {
					t.Errorf("%v: it reads otherwise: %v", ref, err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			mustCheck(t, ploop.ExitClean, img)
			if size, err := os.Stat(raw.Path); err != nil || size.Size() != 8<<20 {
				t.Errorf("the raw file has %d bytes now, %v", size.Size(), err)
			}
		})
	}
}

// TestRaggedOnBlockDevice zeroes and discards what isn't whole blocks of the device.
func TestRaggedOnBlockDevice(t *testing.T) {
	for _, block := range []int{512, 4096} {
		for _, direct := range []bool{true, false} {
			dev := blockDevice(t, 4<<20, block)
			s := mustOpen(t, []image.Ref{{Path: dev, Raw: true}}, Options{NoDirect: !direct})
			if im := s.Status().Images[0]; im.Direct != direct || im.Cached == direct {
				t.Errorf("blocks of %d: %+v", block, im)
			}
			disk := bytes.Repeat([]byte{9}, 4<<20)
			if _, err := s.WriteAt(disk, 0); err != nil {
				t.Fatal(err)
			}
			for _, keep := range []bool{true, false} {
				for _, r := range [][2]int64{{512, 512}, {8192, 8192}, {20 * 1024, 4096 + 512}, {64*1024 + 1536, 16384}, {1<<20 - 512, 1024}} {
					off, n := r[0], r[1]
					if keep {
						off += 2 << 20
					}
					if err := s.WriteZeroes(off, n, keep); err != nil {
						t.Errorf("blocks of %d: %d zeroes at %d: %v", block, n, off, err)
					}
					clear(disk[off : off+n])
				}
			}
			got := make([]byte, len(disk))
			if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, disk) {
				t.Errorf("blocks of %d: the zeroes are elsewhere, %v", block, err)
			}
			u := s.DiscardUnit()
			if u == 0 || u%int64(block) != 0 {
				t.Errorf("blocks of %d: discards by %d bytes", block, u)
			}
			for _, r := range [][2]int64{{512, 512}, {1<<20 + 512, 3 * u}} {
				if err := s.Discard(r[0], r[1]); err != nil {
					t.Errorf("blocks of %d: discard: %v", block, err)
				}
				lo, hi := (r[0]+u-1)/u*u, (r[0]+r[1])/u*u
				if lo >= hi {
					continue
				}
				if _, err := s.ReadAt(got, 0); err != nil {
					t.Fatal(err)
				}
				copy(disk[lo:hi], got[lo:hi]) // which may be anything
			}
			if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, disk) {
				t.Errorf("blocks of %d: a discard has hit what was beside it, %v", block, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
