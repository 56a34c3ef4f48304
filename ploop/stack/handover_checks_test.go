package stack

import (
	"bytes"
	"errors"
	"testing"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// TestSucceedCopy: a copy may have been left in use or closed cleanly; it may
// be shorter than the file was, and lack what wasn't known durable.
func TestSucceedCopy(t *testing.T) {
	for _, clean := range []bool{false, true} {
		m, s := mountScene(t)
		writeByte(t, s, 200, 20) // in the file's index, not durable
		m.copyOf("copy", "top", true)
		if clean {
			// Closed and cut to what was used. The data of cluster 200 is
			// durable, as its entry would otherwise not have been written.
			b := m.w.files["copy"].now[:5*4096]
			copy(b[44:], []byte{0, 0, 0, 0})
			m.w.add("copy", b)
		}
		if at := s.table.Load(200).Sector(); at != 4*8 {
			t.Fatalf("cluster 200 is at sector %d", at)
		}
		if v := m.w.files["copy"].now[format.HeaderSize+4*200]; v != 0 {
			t.Fatalf("the copy has cluster 200 at %d", v)
		}
		m.die("a", errGone)
		h, next := mustSucceed(t, s, one("b/copy"))
		commit(t, h)
		wantScene(t, next)
		wantByte(t, next, 200, 20)
		if in := m.w.files["copy"].durable[44]; in != format.InUseDirty&0xff {
			t.Error("in_use is not set, durably")
		}
		if !next.IndexDirty() {
			t.Error("the index is said to be durable")
		}
		if err := next.Flush(); err != nil {
			t.Fatal(err)
		}
		if v := m.w.files["copy"].durable[format.HeaderSize+4*200]; v != 4 {
			t.Errorf("a flush left cluster 200 at %d", v)
		}
		writeByte(t, next, 201, 21)
		wantByte(t, next, 200, 20)
		closeClean(t, m, next)
	}
}

// TestSucceedDiverged: what was durable and is another now is refused, with
// the place, and nothing is written to it.
func TestSucceedDiverged(t *testing.T) {
	m, s := mountScene(t)
	h := begin(t, s)
	change := func(name string, edit func(b []byte) []byte) {
		m.copyOf("copy", "top", false)
		f := m.w.files["copy"]
		f.now = edit(f.now)
		before := bytes.Clone(f.now)
		_, err := h.Prepare(one("b/copy"))
		var format *image.FormatError
		if !errors.Is(err, image.ErrDiverged) && !errors.Is(err, image.ErrCorrupt) || !errors.As(err, &format) {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
		if !bytes.Equal(before, f.now) {
			t.Errorf("%s: written", name)
		}
	}
	change("entry gone", func(b []byte) []byte { b[format.HeaderSize+4*5] = 0; return b })
	change("two entries swapped", func(b []byte) []byte {
		x, y := &b[format.HeaderSize+4*5], &b[format.HeaderSize+4*300]
		*x, *y = *y, *x
		return b
	})
	change("new entry", func(b []byte) []byte { b[format.HeaderSize+4*9] = 4; return append(b, make([]byte, 4096)...) })
	change("cut short", func(b []byte) []byte { return b[:3*4096] })
	change("other disk size", func(b []byte) []byte { b[36] -= 8; return b })
	change("other data offset", func(b []byte) []byte { b[48] += 8; return b })
	// A place that isn't durable must still lie in the file.
	if err := h.Abort(); err != nil {
		t.Fatal(err)
	}
	writeByte(t, s, 200, 20)
	h = begin(t, s)
	change("unsynced place outside", func(b []byte) []byte { b[format.HeaderSize+4*200] = 0; return b[:4*4096] })
	m.copyOf("copy", "top", false)
	if _, err := h.Prepare(one("b/copy")); err != nil {
		t.Error(err)
	}
	if err := h.Abort(); err != nil {
		t.Error(err)
	}
	wantScene(t, s)
	closeClean(t, m, s)
}

// TestSucceedDoubt: what a failed write of the index left is found out from
// the file that goes on.
func TestSucceedDoubt(t *testing.T) {
	for _, arrives := range []bool{false, true} {
		m, s := mountScene(t)
		m.w.fault = func(_ *simFile, kind string, off, n int64) simFault {
			if off < 4096 && kind == "write" {
				return simFault{err: errGone, arrives: arrives}
			}
			if off < 4096 && kind == "read" {
				return simFault{err: errGone}
			}
			return simFault{}
		}
		if _, err := s.WriteAt(clusterOf(20), 200*4096); !errors.Is(err, errGone) {
			t.Fatal(err)
		}
		if err := s.Discard(300*4096, 4096); !errors.Is(err, errGone) {
			t.Fatal(err)
		}
		m.w.fault = nil
		h, next := mustSucceed(t, s, one("b/top"))
		commit(t, h)
		if arrives {
			wantByte(t, next, 200, 20)
			wantByte(t, next, 300, 0)
		} else {
			wantByte(t, next, 200, 0)
			wantByte(t, next, 300, 301&0xff)
		}
		writeByte(t, next, 200, 22)
		writeByte(t, next, 300, 33)
		wantByte(t, next, 200, 22)
		closeClean(t, m, next)
	}
}

// TestSucceedForce: an intended substitute counts as it is, if it fits.
func TestSucceedForce(t *testing.T) {
	m, s := mountScene(t)
	other, err := Open([]image.Ref{m.addImage("other", 1, 8, 8*sceneClusters)}, Options{open: m.open})
	if err != nil {
		t.Fatal(err)
	}
	writeByte(t, other, 33, 3)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	h := begin(t, s)
	c := one("b/other")
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrDiverged) {
		t.Errorf("%v", err)
	}
	c.Force = true
	next, err := h.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, h)
	wantByte(t, next, 33, 3)
	wantByte(t, next, 5, 0)
	writeByte(t, next, 5, 50)
	if a := next.Status().Allocated; a != 2 {
		t.Errorf("%d allocated", a)
	}
	// What doesn't fit the disk never does.
	h = begin(t, next)
	for _, size := range []uint64{8*sceneClusters - 8, 8*sceneClusters + 8} {
		m.addImage("small", 2, 8, size)
		c = one("b/small")
		c.Force = true
		if _, err := h.Prepare(c); !errors.Is(err, image.ErrGeometry) {
			t.Errorf("%d sectors: %v", size, err)
		}
	}
	m.addImage("coarse", 2, 16, 8*sceneClusters)
	c = one("b/coarse")
	c.Force = true
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrGeometry) {
		t.Errorf("other cluster size: %v", err)
	}
	if err := h.Abort(); err != nil {
		t.Error(err)
	}
	closeClean(t, m, next)
}

// addImage adds one to be opened by mount b.
func (m *simMounts) addImage(name string, version int, clusterSectors uint32, sectors uint64) image.Ref {
	m.w.addImage(name, version, clusterSectors, sectors)
	return image.Ref{Path: "b/" + name}
}

// TestSucceedRefuses: misuse is said to be that.
func TestSucceedRefuses(t *testing.T) {
	m, s := mountScene(t)
	h := begin(t, s)
	c := one("b/top")
	c.Reopen = nil
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrGeometry) {
		t.Errorf("%v", err)
	}
	c = one("b/top")
	c.Reopen[0] = false
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrGeometry) {
		t.Errorf("%v", err)
	}
	c = one("b/top")
	c.Refs[0].Raw = true
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrDiverged) {
		t.Errorf("%v", err)
	}
	if err := s.Close(); !errors.Is(err, ErrSuperseded) {
		t.Errorf("close: %v", err)
	}
	if m.w.files["top"].now[44] == 0 {
		t.Error("in_use was cleared")
	}
	if _, err := h.Prepare(one("b/top")); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	if err := h.Abort(); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}
