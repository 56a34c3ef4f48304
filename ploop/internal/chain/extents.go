package chain

import (
	"errors"
	"math"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/table"
)

// Extents visits the merged extents of images that nobody writes to, in rising order.
func (v *Chain) Extents(visit func(image.Extent) error) error {
	var x image.Extent
	add := func(y image.Extent) error {
		joins := x.Data == y.Data && x.Level == y.Level && (!y.Data || x.Offset+x.Length == y.Offset) &&
			x.Damaged == y.Damaged && x.Doubtful == y.Doubtful
		if x.Length > 0 && joins {
			x.Length += y.Length
			return nil
		}
		was := x
		x = y
		if was.Length == 0 {
			return nil
		}
		return visit(was)
	}
	raw := holes{d: v.Deltas[0]} // none but the base can be raw
	for i := range v.Clusters {
		start := int64(i) * v.Cluster
		y := image.Extent{Start: start, Length: min(v.Cluster, v.Size-start), Level: -1}
		e := v.Table.Load(i)
		var err error
		switch {
		case !e.Mapped():
			err = add(y)
		case v.Deltas[e.Level()].Ref.Raw:
			err = v.rawExtents(&raw, y, add)
		default:
			err = v.storedExtents(e, y, add)
		}
		if err != nil {
			return err
		}
	}
	if x.Length == 0 {
		return nil
	}
	return visit(x)
}

// storedExtents gives a cluster of a ploop image, which may have lost all of it
// or its end.
func (v *Chain) storedExtents(e table.Entry, y image.Extent, add func(image.Extent) error) error {
	d := v.Deltas[e.Level()]
	y.Level, y.File = e.Level(), d.Ref.Path
	have := y.Length
	if e.Bad() {
		have = d.Present(e.Sector(), y.Length)
	}
	if have > 0 {
		z := y
		z.Length, z.Data, z.Offset, z.Doubtful = have, true, e.Sector()*image.SectorSize, e&table.EntryShared != 0
		if err := add(z); err != nil {
			return err
		}
	}
	if have == y.Length {
		return nil
	}
	y.Start, y.Length, y.Damaged = y.Start+have, y.Length-have, true
	return add(y)
}

// rawExtents splits a cluster of a raw file by its holes.
func (v *Chain) rawExtents(h *holes, y image.Extent, add func(image.Extent) error) error {
	for off, end := y.Start, y.Start+y.Length; off < end; {
		if off >= h.end {
			h.seek(off)
		}
		z := image.Extent{Start: off, Length: min(end, h.end) - off, Level: -1}
		if h.data {
			z.Data, z.Level, z.Offset, z.File = true, h.d.Level, off, h.d.Ref.Path
		}
		if err := add(z); err != nil {
			return err
		}
		off += z.Length
	}
	return nil
}

// holes walks through a raw file that may be sparse.
type holes struct {
	d    *format.Delta
	data bool  // up to end there is data
	end  int64 // in whole sectors
}

// seek finds out what is at off, and how far.
func (h *holes) seek(off int64) {
	fd, size := h.d.File.Fd(), int64(h.d.Header.Sectors)*image.SectorSize
	h.data, h.end = true, size
	if off >= size {
		h.data, h.end = false, math.MaxInt64
		return
	}
	at, err := unix.Seek(fd, off, unix.SEEK_DATA)
	switch at = at / image.SectorSize * image.SectorSize; {
	case errors.Is(err, unix.ENXIO):
		h.data = false // a hole up to the end
		return
	case err != nil:
		return // the file system can't tell
	case at > off:
		h.data, h.end = false, at
		return
	}
	at, err = unix.Seek(fd, off, unix.SEEK_HOLE)
	if err == nil {
		h.end = min(max((at+image.SectorSize-1)/image.SectorSize*image.SectorSize, off+image.SectorSize), size)
	}
}
