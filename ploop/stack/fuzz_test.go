package stack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// WantFormatError wants an error to be one of the package's, on one line.
func WantFormatError(t *testing.T, err error) {
	t.Helper()
	var fe *image.FormatError
	if !errors.As(err, &fe) || fe.Class == nil {
		t.Fatalf("an error of another kind: %v", err)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Fatalf("an error of several lines: %q", err)
	}
}

func FuzzHeader(f *testing.F) {
	for _, c := range malformedCases {
		version := 2
		if c.v1 {
			version = 1
		}
		im := newSmallImage(version)
		c.change(im)
		f.Add(im.b[:min(len(im.b), format.HeaderSize)], int64(len(im.b)))
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		h, err := format.ParseHeader("x", b, size)
		if err != nil {
			WantFormatError(t, err)
			return
		}
		// What it accepts must be safe to compute with.
		if h.Clusters() > uint64(h.BATEntries) || h.ClusterSize() <= 0 || h.BATEnd() > size || h.BATEnd() > int64(h.DataStart())*image.SectorSize {
			t.Fatalf("accepted %+v of a file of %d", h, size)
		}
		again, err := format.ParseHeader("x", h.Encode(), size)
		if err != nil || *again != *h {
			t.Fatalf("%+v comes back as %+v, %v", h, again, err)
		}
		if !bytes.Equal(h.Encode(), b[:format.HeaderSize]) {
			t.Fatal("another header is encoded than was read")
		}
	})
}

// fuzzLimit keeps the files of a run small: the engine's memory is bounded by
// the file, and a fuzzer would pay for a large one each time.
const fuzzLimit = 1 << 20

// openFuzzed opens an image in every way and holds the ways against each
// other: what opens checks clean, and what doesn't has a finding or an error.
func openFuzzed(t *testing.T, b []byte) {
	// A fuzzer by itself waits for ever and says nothing. (Where one shows
	// no executions for a while it minimizes: -fuzzminimizetime 2x.)
	defer time.AfterFunc(20*time.Second, func() { panic("takes too long") }).Stop()
	w := newSimWorld()
	refs := []image.Ref{w.add("x", b)}
	r, cerr := ploop.CheckOn(refs, ploop.CheckOptions{}, w.open)
	if cerr != nil {
		WantFormatError(t, cerr)
	}
	s, err := Open(refs, Options{ReadOnly: true, open: w.open})
	if err != nil {
		WantFormatError(t, err)
		if cerr == nil && r.ExitCode() != ploop.ExitCorrupt {
			t.Fatalf("check says %d where Open says %v", r.ExitCode(), err)
		}
		return
	}
	p := make([]byte, image.SectorSize)
	for i := uint64(0); i < min(s.clusters, 100); i++ {
		if _, err := s.ReadAt(p, int64(i)*s.cluster); err != nil {
			t.Fatalf("cluster %d: %v", i, err)
		}
	}
	if err := s.view().Extents(func(image.Extent) error { return nil }); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if cerr != nil {
		return
	}
	if !bytes.Equal(w.files["x"].now, b) {
		t.Fatal("reading wrote")
	}
	for _, f := range r.Images[0].Findings {
		switch f.Kind {
		case ploop.FindingLeak, ploop.FindingInUse, ploop.FindingExtension:
		default:
			t.Fatalf("it opens, and check says %+v", f)
		}
	}

	if s.top.Header.DataStart() > fuzzLimit/image.SectorSize {
		return // opening for writing makes the file reach that far
	}
	// Repaired it must be clean, and writing must keep it so.
	r, err = ploop.CheckOn(refs, ploop.CheckOptions{Repair: true}, w.open)
	if err != nil || r.ExitCode() != ploop.ExitClean {
		t.Fatalf("not repaired: %v, %+v", err, r)
	}
	s, err = Open(refs, Options{open: w.open})
	if err != nil {
		if errors.Is(err, image.ErrUnsupported) || errors.Is(err, image.ErrLimit) {
			return
		}
		t.Fatalf("doesn't open after repair: %v", err)
	}
	if s.cluster <= 1<<16 && s.size < 1<<40 { // or the simulation takes gigabytes
		p = bytes.Repeat([]byte{0xaa}, image.SectorSize)
		if _, err := s.WriteAt(p, s.size-image.SectorSize); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, image.SectorSize)
		if _, err := s.ReadAt(got, s.size-image.SectorSize); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("written, and reads as %x, %v", got[:8], err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r, err = ploop.CheckOn(refs, ploop.CheckOptions{}, w.open)
	if err != nil || r.ExitCode() == ploop.ExitCorrupt {
		t.Fatalf("after writing: %v, %+v", err, r)
	}
}

func FuzzBAT(f *testing.F) {
	for _, c := range malformedCases {
		if c.sparse > 0 {
			continue
		}
		version := 2
		if c.v1 {
			version = 1
		}
		im := newSmallImage(version)
		c.change(im)
		f.Add(im.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > fuzzLimit {
			return
		}
		openFuzzed(t, b)
	})
}

// FuzzExtension gives the extension's cluster a right sum each time, which a
// fuzzer would not find.
func FuzzExtension(f *testing.F) {
	seed := func(im *smallImage) { f.Add(im.ext()[format.ExtHeader:]) }
	seed(newSmallImage(2).withBitmap())
	seed(newSmallImage(2).withBitmap(format.Section{Magic: 1, Flags: format.SectionTransit, Data: []byte("abc")}, format.Section{Magic: 2}))
	seed(newSmallImage(2).withExtension(format.Section{Magic: 7, Flags: format.SectionNeeded}))
	for _, c := range malformedCases {
		im := newSmallImage(2)
		if c.change(im); strings.Contains(c.name, "bitmap") || strings.Contains(c.name, "section") {
			seed(im)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		im := newSmallImage(2).withBitmap()
		clear(im.ext()[format.ExtHeader:])
		copy(im.ext()[format.ExtHeader:], b)
		im.sum()
		openFuzzed(t, im.b)
	})
}

// FuzzStack reads operations out of the fuzzer's bytes and compares a stack
// with a plain disk.
func FuzzStack(f *testing.F) {
	f.Add([]byte("\x00\x00\x05\x10\x01\x02\x03\x04\x02\x00\x08\x00\x03\x00\x20\x00"), uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, shape uint8) {
		const sectors = 200
		w := newSimWorld()
		var refs []image.Ref
		for i := range 1 + shape%3 {
			refs = append(refs, w.addImage(string(rune('a'+i)), 1+int(shape/3+i)%2, 1+uint32(shape/6%9), sectors))
		}
		s, err := Open(refs, Options{open: w.open})
		if err != nil {
			t.Fatal(err)
		}
		model := make([]byte, sectors*image.SectorSize)
		for n := uint8(1); len(b) >= 4; n++ {
			op, first, count := b[0], int64(binary.LittleEndian.Uint16(b[1:]))%sectors, int64(b[3])%20+1
			b = b[4:]
			count = min(count, sectors-first)
			off, k := first*image.SectorSize, count*image.SectorSize
			m := model[off : off+k]
			switch op % 5 {
			case 0:
				for i := range m {
					m[i] = n
				}
				_, err = s.WriteAt(m, off)
			case 1:
				clear(m)
				err = s.WriteZeroes(off, k, op >= 128)
			case 2:
				if err = s.Discard(off, k); err == nil {
					_, err = s.ReadAt(m, off)
				}
			case 3:
				err = s.Flush()
			case 4:
				if err = s.Close(); err == nil {
					s, err = Open(refs, Options{open: w.open})
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, len(model))
		if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, model) {
			t.Fatalf("the disk differs (%v)", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if r, err := ploop.CheckOn(refs, ploop.CheckOptions{}, w.open); err != nil || r.ExitCode() != ploop.ExitClean {
			t.Fatalf("%+v, %v", r, err)
		}
	})
}
