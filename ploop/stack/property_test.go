package stack

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/bitset"
	"holdfast/ploop/internal/format"
)

// TestBitset compares the free list with a map, over any sequence.
func TestBitset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b bitset.Set
		model := map[uint64]bool{}
		number := rapid.OneOf(rapid.Uint64Range(0, 100), rapid.Uint64Range(4000, 4200), rapid.Uint64Range(0, 1<<28))
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				i := number.Draw(t, "i")
				if b.Add(i) == model[i] {
					t.Fatalf("add(%d) misjudges whether it is new", i)
				}
				model[i] = true
			},
			"remove": func(t *rapid.T) {
				i := number.Draw(t, "i")
				if b.Remove(i) != model[i] {
					t.Fatalf("remove(%d) misjudges whether it was there", i)
				}
				delete(model, i)
			},
			"take": func(t *rapid.T) {
				i, ok := b.First()
				if !ok {
					return
				}
				b.Remove(i)
				delete(model, i)
			},
			"": func(t *rapid.T) {
				if b.N != uint64(len(model)) {
					t.Fatalf("has %d members, want %d", b.N, len(model))
				}
				var least uint64
				found := false
				for i := range model {
					if !b.Has(i) {
						t.Fatalf("lost %d", i)
					}
					if !found || i < least {
						least, found = i, true
					}
				}
				if i, ok := b.First(); ok != found || ok && i != least {
					t.Fatalf("first is %d, %v, want %d, %v", i, ok, least, found)
				}
			},
		})
	})
}

// anyHeader draws a header that the package itself would make.
func anyHeader(t *rapid.T) *format.Header {
	version := rapid.IntRange(1, 2).Draw(t, "version")
	cluster := rapid.Uint32Range(1, 5000).Draw(t, "cluster")
	sectors := rapid.Uint64Range(1, 1<<24).Draw(t, "sectors")
	h, err := format.NewHeader(version, sectors, cluster)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestHeaderRoundTrip: what is written is read, and places, sectors and
// entries translate back and forth.
func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := anyHeader(t)
		h.Flags, h.ExtOff = rapid.Uint32Range(0, 1).Draw(t, "flags"), rapid.Uint64().Draw(t, "ext")
		h.InUse = rapid.SampledFrom([]uint32{0, format.InUseDirty, format.InUseClosed}).Draw(t, "in_use")
		got, err := format.ParseHeader("x", h.Encode(), int64(h.DataStart())*image.SectorSize)
		if err != nil || *got != *h {
			t.Fatalf("%+v comes back as %+v, %v", h, got, err)
		}
		pos := rapid.Uint64Range(0, h.Clusters()-1).Draw(t, "position")
		sector := h.SectorAt(pos)
		e, ok := h.EntryOf(sector)
		if !ok || e == 0 || h.SectorOf(e) != sector || h.PositionOf(sector) != pos {
			t.Fatalf("position %d is sector %d, entry %d (%v), sector %d, position %d", pos, sector, e, ok, h.SectorOf(e), h.PositionOf(sector))
		}
		if d := (&format.Delta{Header: *h, Size: int64(h.SectorAt(pos+1)) * image.SectorSize}); d.FileClusters() != pos+1 {
			t.Fatalf("a file that ends behind position %d has %d clusters", pos, d.FileClusters())
		} else if p, ok := d.CheckEntry(0, e); !ok {
			t.Fatalf("a good entry is problem %d", p)
		} else if d.Size--; pos > 0 {
			if p, ok := d.CheckEntry(0, e); ok || p != format.EntryCut {
				t.Fatalf("a cluster cut off is problem %d (%v)", p, ok)
			}
		}
	})
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
