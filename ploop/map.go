package ploop

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Extent is a range of the disk whose bytes lie together in one file of the
// stack, or in none. Numbers are in bytes.
type Extent struct {
	Start  int64 `json:"start"` // on the disk
	Length int64 `json:"length"`
	// Data says that the range is stored: at Offset of File, the image of
	// that Level. Otherwise it reads as zeroes and Level is -1.
	Data   bool   `json:"data"`
	Level  int    `json:"level"`
	File   string `json:"file,omitempty"`
	Offset int64  `json:"offset"`
	// Damaged says that the image of Level has lost the range, and Doubtful
	// that another range has the same place; only of images that are opened
	// although they are damaged.
	Damaged  bool `json:"damaged,omitempty"`
	Doubtful bool `json:"doubtful,omitempty"`
}

// Map tells where the disk of a stack lies, base first, in extents that are
// as long as possible, in rising order, without gaps. visit ends it by an
// error, which Map returns. The images are locked for reading meanwhile.
func Map(refs []ImageRef, visit func(Extent) error) error {
	return mapStack(refs, Options{ReadOnly: true, still: true, oddRaw: true}, visit)
}

// MapDamaged is Map for images that [Options.Damaged] opens.
func MapDamaged(refs []ImageRef, visit func(Extent) error) error {
	return mapStack(refs, Options{ReadOnly: true, still: true, oddRaw: true, Damaged: true}, visit)
}

func mapStack(refs []ImageRef, o Options, visit func(Extent) error) error {
	s, err := Open(refs, o)
	if err != nil {
		return err
	}
	return errors.Join(s.extents(visit), s.Close())
}

// extents visits the merged extents of a stack that nobody writes to.
func (s *Stack) extents(visit func(Extent) error) error {
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
	raw := holes{d: s.deltas[0]} // none but the base can be raw
	for i := range s.clusters {
		start := int64(i) * s.cluster
		y := Extent{Start: start, Length: min(s.cluster, s.size-start), Level: -1}
		e := s.table.load(i)
		var err error
		switch {
		case !e.mapped():
			err = add(y)
		case s.deltas[e.level()].ref.Raw:
			err = s.rawExtents(&raw, y, add)
		default:
			err = s.storedExtents(e, y, add)
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
func (s *Stack) storedExtents(e entry, y Extent, add func(Extent) error) error {
	d := s.deltas[e.level()]
	y.Level, y.File = e.level(), d.ref.Path
	have := y.Length
	if e.bad() {
		have = d.present(e, y.Length)
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
func (s *Stack) rawExtents(h *holes, y Extent, add func(Extent) error) error {
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
	d    *delta
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

func (x Extent) String() string {
	if !x.Data {
		return fmt.Sprintf("%d+%d zero", x.Start, x.Length)
	}
	return fmt.Sprintf("%d+%d level %d %q at %d", x.Start, x.Length, x.Level, x.File, x.Offset)
}
