package stack

import (
	"errors"
	"slices"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// beginWriting makes the top ours: what of the extension can't be kept true
// is dropped, in_use is set, and the unused end of the file is cut off, so that
// what grows there later is known to be zero.
func (s *Stack) beginWriting() error {
	d := s.top
	if d.Ref.Raw {
		return nil
	}
	if err := d.canGrow(); err != nil {
		return err
	}
	if err := d.extLoss(); err != nil {
		return err
	}
	if d.ExtErr != nil {
		s.log("%v; the extension is dropped, as its format asks for", d.ExtErr)
	}
	if d.Ext != nil {
		k, err := d.Ext.Keepable(d.Delta)
		if err != nil {
			return err
		}
		if n := len(d.Ext.Unknown) - len(k.Unknown); n > 0 {
			s.log("%q: %d unknown sections of the format extension are dropped, as their flags ask for", d.Ref.Path, n)
		}
		s.bitmaps, s.unknown = k.Bitmaps, k.Unknown
	}
	if len(s.unknown) > 0 {
		// A section that nobody here understands may point at clusters
		// that the BAT doesn't know. They must stay.
		s.keep = d.foreignEnd()
		s.space.freeze(s.keep)
	}
	was := d.Header
	d.Header.InUse, d.Header.ExtOff = format.InUseDirty, 0
	d.Header.Flags &^= format.FlagEmpty
	err := s.writeHeader()
	if err == nil {
		d.WroteFirst()
		err = s.space.cutTail(s)
	}
	if err != nil {
		// Nothing else was written: don't leave a mark that no one accounts for.
		d.Header = was
		return errors.Join(err, s.writeHeader())
	}
	return nil
}

// extLoss refuses to write an image whose format extension couldn't be read: it
// may be sound, and mustn't be thrown away.
func (d *delta) extLoss() error {
	var ioe *image.IOError
	if errors.Is(d.ExtErr, image.ErrUnsupported) || errors.Is(d.ExtErr, image.ErrLimit) || errors.As(d.ExtErr, &ioe) {
		return d.ExtErr
	}
	return nil
}

func (d *delta) canGrow() error {
	if f, ok := d.File.(*storage.OSFile); ok && f.Block {
		return &image.FormatError{File: d.Ref.Path, Offset: -1, What: "image to be written", Class: image.ErrUnsupported, Found: "a block device, which can't grow", Want: "a regular file"}
	}
	return nil
}

// foreignEnd is the first position of the file behind everything that may be
// somebody else's: all of it but the extension's own clusters at the very end.
func (d *delta) foreignEnd() uint64 {
	n := (uint64(d.Size)/image.SectorSize - d.Header.DataStart() + uint64(d.Header.ClusterSectors) - 1) / uint64(d.Header.ClusterSectors)
	for n > 0 && slices.Contains(d.Ext.Places, d.Header.SectorAt(n-1)) {
		n--
	}
	return n
}
