package stack

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// deepScene is a top over an image over a raw base, all on mount a, and the
// bytes of its disk.
func deepScene(t *testing.T, readOnly bool) (*simMounts, *Stack, []byte) {
	t.Helper()
	const sectors = 8 * sceneClusters
	w := newSimWorld()
	disk := bytes.Repeat(clusterOf(1), sceneClusters-1)
	w.add("raw", disk)
	disk = append(disk, clusterOf(0)...)
	w.addImage("middle", 1, 8, sectors)
	w.addImage("top", 2, 8, sectors)
	m := newSimMounts(t, w)
	refs := []image.Ref{{Path: "a/raw", Raw: true}, {Path: "a/middle"}, {Path: "a/top"}}
	for n := 2; n <= 3; n++ {
		s, err := Open(refs[:n], Options{open: m.open})
		if err != nil {
			t.Fatal(err)
		}
		for i := int64(n); i < sceneClusters; i += 50 {
			writeByte(t, s, i, byte(n))
			copy(disk[i*4096:], clusterOf(byte(n)))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(refs, Options{open: m.open, ReadOnly: readOnly, Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	return m, s, disk
}

func wantDisk(t *testing.T, s *Stack, disk []byte) {
	t.Helper()
	p := make([]byte, len(disk))
	if _, err := s.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	for i := range len(p) / 4096 {
		if !bytes.Equal(p[i*4096:][:4096], disk[i*4096:][:4096]) {
			t.Fatalf("cluster %d reads as %d, want %d", i, p[i*4096], disk[i*4096])
		}
	}
}

func refsOf(s *Stack) (refs []image.Ref) {
	for _, d := range s.deltas {
		refs = append(refs, d.Ref)
	}
	return refs
}

// TestSucceedLevels: any of a stack's files may be opened anew, in a stack that
// is written or only read; the rest is shared, and closed by the last user.
func TestSucceedLevels(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		for mask := range 8 {
			m, s, disk := deepScene(t, readOnly)
			if !readOnly {
				writeByte(t, s, 77, 7) // not flushed
				copy(disk[77*4096:], clusterOf(7))
			}
			c := Succession{Refs: refsOf(s), Drained: true}
			for level, name := range []string{"raw", "middle", "top"} {
				anew := mask>>level&1 != 0
				c.Reopen = append(c.Reopen, anew)
				if anew {
					m.copyOf(name+"2", name, false)
					c.Refs[level].Path = "b/" + name + "2"
				}
			}
			before := bytes.Clone(m.w.files["top"].now)
			h, next := mustSucceed(t, s, c)
			old := slices.Clone(s.deltas)
			commit(t, h)
			wantDisk(t, next, disk)
			for level, anew := range c.Reopen {
				f := old[level].File.(*simHandle)
				if anew {
					eventually(t, "close of the old file", f.closed.Load)
				} else if f.closed.Load() {
					t.Errorf("level %d, which is shared, is closed", level)
				}
			}
			if !readOnly {
				writeByte(t, next, 78, 8)
				copy(disk[78*4096:], clusterOf(8))
				wantDisk(t, next, disk)
			}
			closeClean(t, m, next)
			if readOnly && !bytes.Equal(before, m.w.files["top"].now) {
				t.Error("a stack that is only read was written")
			}
			for level := range old {
				eventually(t, "close of all", next.deltas[level].File.(*simHandle).closed.Load)
			}
		}
	}
}

// TestSucceedLowerDiverged: of a lower image, what the merged table shows must
// be as it was; what is hidden may differ. With force its own index counts.
func TestSucceedLowerDiverged(t *testing.T) {
	m, s, disk := deepScene(t, false)
	h := begin(t, s)
	c := Succession{Refs: refsOf(s), Reopen: []bool{false, true, false}, Drained: true}
	c.Refs[1].Path = "b/middle2"
	edit := func(i int) {
		m.copyOf("middle2", "middle", false)
		clear(m.w.files["middle2"].now[format.HeaderSize+4*i:][:4])
	}
	edit(52) // shown
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrDiverged) {
		t.Errorf("%v", err)
	}
	c.Force = true
	next, err := h.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(disk)
	copy(changed[52*4096:], clusterOf(1)) // the raw base's
	wantDisk(t, next, changed)
	if err := h.Abort(); err != nil {
		t.Error(err)
	}
	wantDisk(t, s, disk)

	h = begin(t, s)
	c.Force = false
	m.copyOf("middle2", "middle", false)
	copy(m.w.files["middle2"].now[44:], []byte{0x59, 0x6e, 0x6f, 0x74})
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrDiverged) {
		t.Errorf("in use: %v", err)
	}
	c = Succession{Refs: refsOf(s), Reopen: []bool{true, false, false}, Drained: true}
	c.Refs[0].Path = "b/raw2"
	m.w.add("raw2", m.w.files["raw"].now[:4096])
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrDiverged) {
		t.Errorf("shorter base: %v", err)
	}
	if err := h.Abort(); err != nil {
		t.Error(err)
	}
	writeByte(t, s, 3, 33)
	// The top hides it now.
	writeByte(t, s, 52, 5)
	copy(disk[3*4096:], clusterOf(33))
	copy(disk[52*4096:], clusterOf(5))
	edit(52)
	c = Succession{Refs: refsOf(s), Reopen: []bool{false, true, false}, Drained: true}
	c.Refs[1].Path = "b/middle2"
	h, next = mustSucceed(t, s, c)
	commit(t, h)
	wantDisk(t, next, disk)
	closeClean(t, m, next)
}

// TestSucceedSharedDoubt: a top that stays keeps its doubts, and they are
// settled by it.
func TestSucceedSharedDoubt(t *testing.T) {
	for _, arrives := range []bool{false, true} {
		for _, force := range []bool{false, true} {
			m, s, disk := deepScene(t, false)
			m.w.fault = func(f *simFile, kind string, off, n int64) simFault {
				if f == m.w.files["top"] && off < 4096 && (kind == "write" || kind == "read") {
					return simFault{err: syscall.EIO, arrives: arrives}
				}
				return simFault{}
			}
			if _, err := s.WriteAt(clusterOf(52), 52*4096); !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			m.copyOf("middle2", "middle", false)
			c := Succession{Refs: refsOf(s), Reopen: []bool{false, true, false}, Drained: true, Force: force}
			c.Refs[1].Path = "b/middle2"
			h, next := mustSucceed(t, s, c)
			commit(t, h)
			if _, err := next.ReadAt(make([]byte, 4096), 52*4096); !errors.Is(err, syscall.EIO) {
				t.Errorf("in doubt it reads: %v", err)
			}
			m.w.fault = nil
			if arrives {
				copy(disk[52*4096:], clusterOf(52))
			}
			wantDisk(t, next, disk)
			writeByte(t, next, 52, 53)
			copy(disk[52*4096:], clusterOf(53))
			wantDisk(t, next, disk)
			closeClean(t, m, next)
		}
	}
}

// TestSucceedBitmaps: what the file of a live top doesn't tell goes over from
// memory; after force the bitmaps say that all was written.
func TestSucceedBitmaps(t *testing.T) {
	for _, force := range []bool{false, true} {
		im := newSmallImage(2).withBitmap(format.Section{Magic: 2, Flags: format.SectionTransit, Data: []byte("carried along")})
		ref := writeSmall(t, im)
		s := mustOpen(t, []image.Ref{ref}, Options{Log: t.Logf})
		if _, err := s.WriteAt(make([]byte, image.SectorSize), 8*image.SectorSize); err != nil {
			t.Fatal(err)
		}
		want := setOf(s.bitmaps[0])
		c := Succession{Refs: []image.Ref{{Path: ref.Path + ".copy"}}, Reopen: []bool{true}, Drained: true, Force: force}
		b, err := os.ReadFile(ref.Path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.Refs[0].Path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		h, next := mustSucceed(t, s, c)
		commit(t, h)
		if _, err := next.WriteAt(make([]byte, image.SectorSize), 300*image.SectorSize); err != nil {
			t.Fatal(err)
		}
		now := setOf(next.bitmaps[0])
		if force && uint64(len(now)) != next.bitmaps[0].Granules() {
			t.Errorf("forced: only %d bits are set", len(now))
		}
		for _, g := range append(want, 300/uint64(next.bitmaps[0].Granularity)) {
			if !slices.Contains(now, g) {
				t.Errorf("bit %d is lost", g)
			}
		}
		if err := next.Close(); err != nil {
			t.Fatal(err)
		}
		mustCheck(t, ploop.ExitClean, c.Refs[0])
		if got := bitmapsOf(t, c.Refs[0]); len(got) != 1 || !slices.Equal(setOf(got[0]), now) {
			t.Errorf("in the file: %v, want %v", got, now)
		}
		d, err := format.Open(c.Refs[0], storage.Open, false, false, format.Tolerance{})
		if err != nil || d.Ext == nil || len(d.Ext.Unknown) != 1 || string(d.Ext.Unknown[0].Data) != "carried along" {
			t.Errorf("the unknown section is lost: %+v, %v", d, err)
		}
		if err == nil {
			d.File.Close()
		}
	}
}

// TestSucceedRealFiles does it with files and their locks: the same one again
// and again, and a copy.
func TestSucceedRealFiles(t *testing.T) {
	dir := memDir(t)
	for _, direct := range []bool{true, false} {
		ref := mustCreate(t, filepath.Join(dir, "top"), ploop.CreateOptions{Size: 64 << 20, ClusterSize: 65536})
		s := mustOpen(t, []image.Ref{ref}, Options{NoDirect: !direct})
		p := bytes.Repeat([]byte{1}, 65536)
		locked := func() bool {
			f, err := storage.Open(ref.Path, true, false)
			if err == nil {
				f.Close()
			}
			return errors.Is(err, image.ErrLocked)
		}
		for i := range int64(10) {
			if _, err := s.WriteAt(p, i*65536); err != nil {
				t.Fatal(err)
			}
			c := Succession{Refs: []image.Ref{ref}, Reopen: []bool{true}, Drained: true}
			r := s.NewReader()
			at := r.Locate(0, 512, true)
			h := begin(t, s)
			if _, err := h.Prepare(c); !errors.Is(err, image.ErrLocked) {
				t.Fatalf("a transfer is under way: %v", err)
			}
			r.Leave(at.Token)
			next, err := h.Prepare(c)
			if err != nil {
				t.Fatal(err)
			}
			if !locked() {
				t.Error("nobody has the lock")
			}
			if i%3 == 0 {
				if err := h.Abort(); err != nil {
					t.Fatal(err)
				}
				if !locked() {
					t.Error("nobody has the lock after undo")
				}
				continue
			}
			commit(t, h)
			s = next
		}
		b, err := os.ReadFile(ref.Path)
		if err != nil {
			t.Fatal(err)
		}
		ref.Path += ".copy"
		if err := os.WriteFile(ref.Path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		h, next := mustSucceed(t, s, Succession{Refs: []image.Ref{ref}, Reopen: []bool{true}, Drained: true})
		commit(t, h)
		got := make([]byte, 11*65536)
		if _, err := next.ReadAt(got, 0); err != nil || !bytes.Equal(got, append(bytes.Repeat([]byte{1}, 10*65536), make([]byte, 65536)...)) {
			t.Errorf("the content is another (%v)", err)
		}
		if err := next.Close(); err != nil {
			t.Fatal(err)
		}
		if locked() {
			t.Error("somebody has the lock")
		}
		mustCheck(t, ploop.ExitClean, ref)
		os.Remove(ref.Path)
		os.Remove(filepath.Join(dir, "top"))
	}
}

// TestSucceedTwiceTheSame: one file can't be two levels.
func TestSucceedTwiceTheSame(t *testing.T) {
	dir := memDir(t)
	base := mustCreate(t, filepath.Join(dir, "base"), ploop.CreateOptions{Size: 1 << 20, ClusterSize: 65536})
	top := mustCreate(t, filepath.Join(dir, "top"), ploop.CreateOptions{Size: 1 << 20, ClusterSize: 65536})
	s := mustOpen(t, []image.Ref{base, top}, Options{ReadOnly: true})
	h := begin(t, s)
	_, err := h.Prepare(Succession{Refs: []image.Ref{base, base}, Reopen: []bool{false, true}, Drained: true, Force: true})
	if !errors.Is(err, image.ErrGeometry) {
		t.Errorf("%v", err)
	}
	if err := h.Abort(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestSucceedRawTop: a raw file alone has neither header nor index.
func TestSucceedRawTop(t *testing.T) {
	w := newSimWorld()
	w.add("raw", bytes.Repeat(clusterOf(3), 512))
	m := newSimMounts(t, w)
	s, err := Open([]image.Ref{{Path: "a/raw", Raw: true}}, Options{open: m.open})
	if err != nil {
		t.Fatal(err)
	}
	c := one("b/raw")
	c.Refs[0].Raw = true
	h, next := mustSucceed(t, s, c)
	commit(t, h)
	writeByte(t, next, 4, 4)
	wantByte(t, next, 5, 3)
	w.add("short", make([]byte, 1<<20))
	c.Refs[0].Path = "b/short"
	h = begin(t, next)
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrDiverged) {
		t.Errorf("%v", err)
	}
	c.Force = true
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrGeometry) {
		t.Errorf("%v", err)
	}
	if err := h.Abort(); err != nil {
		t.Error(err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}
