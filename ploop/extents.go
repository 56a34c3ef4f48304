package ploop

import (
	"errors"
	"math"

	"golang.org/x/sys/unix"
)

// extents visits the merged extents of images that nobody writes to, in rising order.
func (v *view) extents(visit func(Extent) error) error {
	var x Extent
	add := func(y Extent) error {
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
	raw := holes{d: v.deltas[0]} // none but the base can be raw
	for i := range v.clusters {
		start := int64(i) * v.cluster
		y := Extent{Start: start, Length: min(v.cluster, v.size-start), Level: -1}
		e := v.table.load(i)
		var err error
		switch {
		case !e.mapped():
			err = add(y)
		case v.deltas[e.level()].ref.Raw:
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
func (v *view) storedExtents(e entry, y Extent, add func(Extent) error) error {
	d := v.deltas[e.level()]
	y.Level, y.File = e.level(), d.ref.Path
	have := y.Length
	if e.bad() {
		have = d.present(e.sector(), y.Length)
	}
	if have > 0 {
		z := y
		z.Length, z.Data, z.Offset, z.Doubtful = have, true, e.sector()*SectorSize, e&entryShared != 0
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
func (v *view) rawExtents(h *holes, y Extent, add func(Extent) error) error {
	for off, end := y.Start, y.Start+y.Length; off < end; {
		if off >= h.end {
			h.seek(off)
		}
		z := Extent{Start: off, Length: min(end, h.end) - off, Level: -1}
		if h.data {
			z.Data, z.Level, z.Offset, z.File = true, h.d.level, off, h.d.ref.Path
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
	d    *Delta
	data bool  // up to end there is data
	end  int64 // in whole sectors
}

// seek finds out what is at off, and how far.
func (h *holes) seek(off int64) {
	fd, size := h.d.file.Fd(), int64(h.d.hdr.Sectors)*SectorSize
	h.data, h.end = true, size
	if off >= size {
		h.data, h.end = false, math.MaxInt64
		return
	}
	at, err := unix.Seek(fd, off, unix.SEEK_DATA)
	switch at = at / SectorSize * SectorSize; {
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
		h.end = min(max((at+SectorSize-1)/SectorSize*SectorSize, off+SectorSize), size)
	}
}
