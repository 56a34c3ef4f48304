package stack

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// wantLost reads the whole disk by sectors and wants exactly the given ones,
// in clusters, to be refused.
func wantLost(t *testing.T, s *Stack, lost ...uint64) {
	t.Helper()
	p := make([]byte, image.SectorSize)
	for i := range s.clusters {
		for in := int64(0); in < s.cluster; in += image.SectorSize {
			off := int64(i)*s.cluster + in
			_, err := s.ReadAt(p, off)
			if bad := slices.Contains(lost, i); bad != errors.Is(err, image.ErrDamaged) || err != nil && !bad {
				t.Errorf("cluster %d: %v", i, err)
			}
			if at := s.slow.Locate(off, image.SectorSize, false); at.Where == Direct {
				s.slow.Leave(at.Token)
			} else if (at.Where == Slow) != slices.Contains(lost, i) {
				t.Errorf("cluster %d is located %v", i, at)
			}
		}
	}
}

// TestDamagedEntries: what is lost is an error, even where a lower image has an
// older version; the rest reads.
func TestDamagedEntries(t *testing.T) {
	base, _ := fileOf(t, func(im *smallImage) { im.entry(7, 2); im.entry(5, 77); im.entry(9, 77) })
	top, _ := fileOf(t, func(im *smallImage) {
		im.entry(7, 99) // behind the end
		im.entry(9, 2)  // hides a bad one
		im.put32(44, format.InUseDirty)
	})
	refs := []image.Ref{base, top}
	_, err := Open(refs, Options{ReadOnly: true})
	WantLine(t, err, image.ErrCorrupt, base.Path)
	_, err = Open(refs, Options{Damaged: true})
	WantLine(t, err, ErrReadOnly)
	s := mustOpen(t, refs, Options{ReadOnly: true, Damaged: true})
	defer s.Close()
	wantLost(t, s, 5, 7)
	d := s.Damage()
	const c = smallCluster * image.SectorSize
	if !slices.Equal(d.Unreadable, []image.Range{{Start: 5 * c, Length: c}, {Start: 7 * c, Length: c}}) || d.UnreadableBytes != 2*c || d.DoubtfulBytes != 0 || d.Guesses != nil {
		t.Errorf("%+v", d)
	}
	// A range over its border is refused as a whole.
	if n, err := s.ReadAt(make([]byte, 2*c), 4*c); n != c || !errors.Is(err, image.ErrDamaged) {
		t.Errorf("reads %d, %v", n, err)
	}
	// A server that dies, or an upgrade, goes on with the same.
	h := begin(t, s)
	n, err := h.Prepare(Succession{Refs: refs, Reopen: []bool{true, true}, Drained: true})
	if err != nil {
		t.Fatal(err)
	}
	commit(t, h)
	wantLost(t, n, 5, 7)
	n.Close()
}

// TestDamagedDuplicates: both have the cluster, and both are said to be doubtful.
func TestDamagedDuplicates(t *testing.T) {
	for _, version := range []int{1, 2} {
		im := newSmallImage(version)
		copy(im.b[format.HeaderSize+4*20:], im.b[format.HeaderSize+4*7:][:4])
		copy(im.b[format.HeaderSize+4*21:], im.b[format.HeaderSize+4*7:][:4])
		ref := writeSmall(t, im)
		s := mustOpen(t, []image.Ref{ref}, Options{ReadOnly: true, Damaged: true})
		wantLost(t, s)
		for _, i := range []int64{7, 20, 21} {
			p := make([]byte, image.SectorSize)
			if _, err := s.ReadAt(p, i*s.cluster); err != nil || p[0] != 2 {
				t.Errorf("cluster %d reads %d, %v", i, p[0], err)
			}
		}
		c := s.cluster
		if d := s.Damage(); !slices.Equal(d.Doubtful, []image.Range{{Start: 7 * c, Length: c}, {Start: 20 * c, Length: 2 * c}}) || d.DoubtfulBytes != 3*c || d.UnreadableBytes != 0 {
			t.Errorf("%+v", d)
		}
		h := begin(t, s)
		n, err := h.Prepare(Succession{Refs: []image.Ref{ref}, Reopen: []bool{true}, Drained: true})
		if err != nil {
			t.Fatal(err)
		}
		commit(t, h)
		wantLost(t, n)
		n.Close()
	}
}

// TestDamagedDataOffset: whatever the header says, the data is found, in version
// 1 also where it isn't aligned to the file.
func TestDamagedDataOffset(t *testing.T) {
	for _, c := range []struct {
		version int
		start   uint32 // of the data, in sectors; 0: as usual
	}{{2, 0}, {1, 0}, {1, 1}, {1, 3}} {
		im := newSmallImage(c.version)
		if c.start != 0 { // move it
			body := bytes.Clone(im.b[smallCluster*image.SectorSize:])
			im.b = append(im.b[:int(c.start)*image.SectorSize], body...)
			for k, i := range []int{0, 7, 39} {
				im.entry(i, c.start+uint32(k*smallCluster))
			}
		}
		if c.start != 0 {
			im.put32(48, c.start)
		}
		want := readDisk(t, writeSmall(t, im))
		for _, off := range []uint32{0, 1, 2, 5, 7, 9, 1<<32 - 1, 1 << 31} {
			im.put32(48, off)
			ref := writeSmall(t, im)
			s := mustOpen(t, []image.Ref{ref}, Options{ReadOnly: true, Damaged: true})
			got := make([]byte, s.Size())
			if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("version %d, data at %d, said to be at %d: %v", c.version, c.start, off, err)
			}
			if _, err := Open([]image.Ref{ref}, Options{ReadOnly: true}); err != nil && s.Damage().Guesses == nil {
				t.Errorf("version %d, %d for %d: no guess, and %v without one", c.version, off, c.start, err)
			}
			if i, err := ploop.ReadInfo(ref); err != nil || i.Allocated != 3 || i.BadEntries != 0 {
				t.Errorf("%+v, %v", i, err)
			}
			s.Close()
		}
	}
}

// TestDamagedInUse: an unknown mark is taken for one of an image that wasn't
// closed.
func TestDamagedInUse(t *testing.T) {
	ref, _ := fileOf(t, func(im *smallImage) { im.put32(44, 0xdeadbeef) })
	s := mustOpen(t, []image.Ref{ref}, Options{ReadOnly: true, Damaged: true})
	defer s.Close()
	wantLost(t, s)
	if d := s.Damage(); len(d.Guesses) != 1 {
		t.Errorf("%+v", d)
	}
}

// TestConvertDamaged: the copy has what the image has, and all else is told.
func TestConvertDamaged(t *testing.T) {
	const c = smallCluster * image.SectorSize
	ref, _ := fileOf(t, func(im *smallImage) {
		im.entry(3, 99)
		im.entry(4, 1)              // as cluster 0
		im.b = im.b[:len(im.b)-c/2] // of cluster 39
	})
	dst := filepath.Join(memDir(t), "raw")
	if err := ploop.Convert(context.Background(), ref, dst, ploop.ConvertOptions{}); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("a damaged image is copied: %v", err)
	}
	var d *image.Damage
	if err := ploop.Convert(context.Background(), ref, dst, ploop.ConvertOptions{Damaged: func(x *image.Damage) { d = x }}); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, smallSectors*image.SectorSize)
	for i, v := range map[int]byte{0: 1, 4: 1, 7: 2, 39: 3} {
		copy(want[i*c:], bytes.Repeat([]byte{v}, c))
	}
	clear(want[39*c+c/2:])
	if got, _ := os.ReadFile(dst); !bytes.Equal(got, want) {
		t.Error("the copy differs")
	}
	if !slices.Equal(d.Unreadable, []image.Range{{Start: 3 * c, Length: c}, {Start: 39*c + c/2, Length: c / 2}}) || !slices.Equal(d.Doubtful, []image.Range{{Start: 0, Length: c}, {Start: 4 * c, Length: c}}) {
		t.Errorf("%+v", d)
	}
	var xs []image.Extent
	if err := ploop.MapDamaged([]image.Ref{ref}, func(x image.Extent) error { xs = append(xs, x); return nil }); err != nil {
		t.Fatal(err)
	}
	lost, doubtful, all := int64(0), int64(0), int64(0)
	for _, x := range xs {
		all += x.Length
		if x.Damaged {
			lost += x.Length
		}
		if x.Doubtful {
			doubtful += x.Length
		}
		if x.Damaged && x.Data {
			t.Errorf("%+v", x)
		}
	}
	if lost != c+c/2 || doubtful != 2*c || all != int64(len(want)) {
		t.Errorf("%v", xs)
	}
}

// TestDamagedNeverCrashes opens what chance makes of an image.
func TestDamagedNeverCrashes(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 26))
	opened := 0
	for i := range 1000 {
		version := 1 + i%2
		im := newSmallImage(version).withBitmap()
		for range 1 + rng.IntN(8) {
			im.b[rng.IntN(format.HeaderSize+4*40)] = byte(rng.Uint32())
		}
		if rng.IntN(2) == 0 {
			copy(im.b, newSmallImage(version).b[:36])
		}
		damageAtRandom(im, version, rng)
		w := newSimWorld()
		ref := w.add("x", im.b)
		s, err := Open([]image.Ref{ref}, Options{ReadOnly: true, Damaged: true, open: w.open})
		if err != nil {
			WantFormatError(t, err)
			continue
		}
		opened++
		p := make([]byte, image.SectorSize)
		for k := range min(s.clusters, 100) {
			if _, err := s.ReadAt(p, int64(k)*s.cluster); err != nil && !errors.Is(err, image.ErrDamaged) {
				t.Fatalf("image %d, cluster %d: %v", i, k, err)
			}
		}
		s.Damage()
		s.Close()
	}
	if opened < 150 {
		t.Errorf("only %d of 1000 opened", opened)
	}
}
