package format

import (
	"testing"

	"pgregory.net/rapid"

	"holdfast/ploop/image"
)

// anyHeader draws a header that the package itself would make.
func anyHeader(t *rapid.T) *Header {
	version := rapid.IntRange(1, 2).Draw(t, "version")
	cluster := rapid.Uint32Range(1, 5000).Draw(t, "cluster")
	sectors := rapid.Uint64Range(1, 1<<24).Draw(t, "sectors")
	h, err := NewHeader(version, sectors, cluster)
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
		h.InUse = rapid.SampledFrom([]uint32{0, InUseDirty, InUseClosed}).Draw(t, "in_use")
		got, err := ParseHeader("x", h.Encode(), int64(h.DataStart())*image.SectorSize)
		if err != nil || *got != *h {
			t.Fatalf("%+v comes back as %+v, %v", h, got, err)
		}
		pos := rapid.Uint64Range(0, h.Clusters()-1).Draw(t, "position")
		sector := h.SectorAt(pos)
		e, ok := h.EntryOf(sector)
		if !ok || e == 0 || h.SectorOf(e) != sector || h.PositionOf(sector) != pos {
			t.Fatalf("position %d is sector %d, entry %d (%v), sector %d, position %d", pos, sector, e, ok, h.SectorOf(e), h.PositionOf(sector))
		}
		if d := (&Delta{Header: *h, Size: int64(h.SectorAt(pos+1)) * image.SectorSize}); d.FileClusters() != pos+1 {
			t.Fatalf("a file that ends behind position %d has %d clusters", pos, d.FileClusters())
		} else if p, ok := d.CheckEntry(0, e); !ok {
			t.Fatalf("a good entry is problem %d", p)
		} else if d.Size--; pos > 0 {
			if p, ok := d.CheckEntry(0, e); ok || p != EntryCut {
				t.Fatalf("a cluster cut off is problem %d (%v)", p, ok)
			}
		}
	})
}
