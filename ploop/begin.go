package ploop

import (
	"errors"
	"slices"
)

// beginWriting makes the top ours: what of the extension can't be kept true
// is let go, in_use is set, and the unused end of the file is cut off, so that
// what grows there later is known to be zero.
func (s *Stack) beginWriting() error {
	d := s.top
	if d.ref.Raw {
		return nil
	}
	if err := d.canGrow(); err != nil {
		return err
	}
	if err := d.extLoss(); err != nil {
		return err
	}
	if d.extErr != nil {
		s.log("%v; the extension is dropped, as its format asks for", d.extErr)
	}
	if d.ext != nil {
		k, err := d.ext.keepable(d.Delta)
		if err != nil {
			return err
		}
		if n := len(d.ext.unknown) - len(k.unknown); n > 0 {
			s.log("%q: %d unknown sections of the format extension are dropped, as their flags ask for", d.ref.Path, n)
		}
		s.bitmaps, s.unknown = k.bitmaps, k.unknown
	}
	if len(s.unknown) > 0 {
		// A section that nobody here understands may point at clusters
		// that the BAT doesn't know. They must stay.
		s.keep = d.foreignEnd()
		s.space.freeze(s.keep)
	}
	was := d.hdr
	d.hdr.InUse, d.hdr.ExtOff = inUseDirty, 0
	d.hdr.Flags &^= flagEmpty
	err := s.writeHeader()
	if err == nil {
		d.wroteFirst()
		err = s.cutTail()
	}
	if err != nil {
		// Nothing else was written: don't leave a mark that no one accounts for.
		d.hdr = was
		return errors.Join(err, s.writeHeader())
	}
	return nil
}

// extLoss refuses to write an image whose format extension couldn't be read: it
// may be sound, and mustn't be thrown away.
func (d *delta) extLoss() error {
	var ioe *IOError
	if errors.Is(d.extErr, ErrUnsupported) || errors.Is(d.extErr, ErrLimit) || errors.As(d.extErr, &ioe) {
		return d.extErr
	}
	return nil
}

func (d *delta) canGrow() error {
	if f, ok := d.file.(*osFile); ok && f.block {
		return &FormatError{File: d.ref.Path, Offset: -1, What: "image to be written", Class: ErrUnsupported, Found: "a block device, which can't grow", Want: "a regular file"}
	}
	return nil
}

// foreignEnd is the first position of the file behind everything that may be
// somebody else's: all of it but the extension's own clusters at the very end.
func (d *delta) foreignEnd() uint64 {
	n := (uint64(d.size)/SectorSize - d.hdr.DataStart() + uint64(d.hdr.ClusterSectors) - 1) / uint64(d.hdr.ClusterSectors)
	for n > 0 && slices.Contains(d.ext.places, d.hdr.sectorAt(n-1)) {
		n--
	}
	return n
}
