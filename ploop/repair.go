package ploop

import (
	"encoding/binary"
	"errors"
	"slices"

	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// checkExtension judges the format extension, whose clusters count as used.
func (c *ImageCheck) checkExtension(d *format.Delta, used format.Positions) error {
	h := &d.Header
	// Without a valid in_use nobody reads it; but if its space is cut off,
	// the field that points there must go first.
	c.dropExt = h.ExtOff != 0
	if d.ExtErr != nil {
		var fe *FormatError
		if !errors.As(d.ExtErr, &fe) || !errors.Is(d.ExtErr, ErrCorrupt) {
			return d.ExtErr
		}
		c.found(FindingExtension, fixExtension, fe)
	}
	if d.Ext == nil {
		return nil
	}
	places := slices.Clone(d.Ext.Places)
	slices.Sort(places)
	for i, at := range places {
		// format.Open saw to it that each lies in the data and in the file. QEMU
		// aligns them; that others do nobody promises.
		first, last := h.PositionOf(at), h.PositionOf(at+uint64(h.ClusterSectors)-1)
		twice := i > 0 && places[i-1]+uint64(h.ClusterSectors) > at
		if twice || used.Has(first) || used.Has(last) {
			c.found(FindingExtension, fixExtension, d.BadExt(int64(at)*SectorSize, ErrCorrupt, "cluster", "one that something else uses as well", "one of its own").(*FormatError))
			return nil
		}
	}
	c.dropExt = false
	c.Free -= min(c.Free, c.extGaps(h, places))
	for _, at := range places {
		c.end = max(c.end, int64(at+uint64(h.ClusterSectors))*SectorSize)
	}
	return nil
}

// extGaps counts what of the extension lies in gaps that were counted as free.
func (c *ImageCheck) extGaps(h *format.Header, places []uint64) (n uint64) {
	for _, at := range places {
		if int64(at)*SectorSize < c.end {
			n++
		}
	}
	return n
}

// repair mends what look found. Each step is durable before the next: whatever
// a power cut leaves, the image is no worse than before. The extension's field
// and the entries go before the space that they may point to, and in_use is
// cleared last of all.
func (c *ImageCheck) repair(d *format.Delta) error {
	if f, ok := d.File.(*storage.OSFile); ok && f.Block {
		return nil // can't be cut; Open doesn't write to it either
	}
	if c.dropExt || c.count[fixHeader] > 0 {
		if c.dropExt {
			d.Header.ExtOff = 0
			if d.Header.InUse == format.InUseClosed {
				d.Header.InUse = 0
			}
		}
		if err := patchHeader(d); err != nil {
			return err
		}
	}
	if c.end > d.Size && c.count[fixLength] > 0 {
		if err := lengthen(d, c.end); err != nil {
			return err
		}
	}
	if len(c.clear) > 0 {
		if err := clearEntries(d, c.clear); err != nil {
			return err
		}
	}
	if c.more {
		return nil // still corrupt: the findings stay, the next repair goes on
	}
	done := &c.done
	*done = [numFixes]bool{fixHeader: true, fixLength: true, fixEntry: true, fixExtension: true}
	if done[fixLeak] = c.badEntries == 0; done[fixLeak] && c.LeakBytes > 0 {
		if err := d.File.Truncate(c.end); err != nil {
			return d.IOError("truncate", c.end, err)
		}
	}
	if err := d.IOError("sync", -1, d.File.Sync()); err != nil {
		return err
	}
	if done[fixInUse] = c.count[fixHeld] == 0; done[fixInUse] {
		was := d.Header
		d.Header.SetEmpty(c.Allocated == 0)
		if d.Header.InUse == format.InUseDirty {
			d.Header.InUse = 0
		}
		if d.Header != was {
			if err := patchHeader(d); err != nil {
				return err
			}
		}
	}
	for i := range c.Findings {
		c.Findings[i].Repaired = done[c.Findings[i].fix]
	}
	for by, n := range c.count {
		if done[by] && fix(by) != fixLeak {
			c.left -= n
			c.Repaired += n
		}
	}
	if done[fixLeak] {
		c.Repaired += c.Leaks
	}
	return nil
}

// lengthen gives the file the rest of its last cluster, which reads as zeroes.
func lengthen(d *format.Delta, end int64) error {
	if err := d.File.Truncate(end); err != nil {
		return d.IOError("truncate", end, err)
	}
	d.Size = end
	return d.IOError("sync", -1, d.File.Sync())
}

// clearEntries writes 0 over entries of the BAT, which are in rising order.
func clearEntries(d *format.Delta, entries []uint64) error {
	for len(entries) > 0 {
		at := format.SectorOfEntry(entries[0])
		b := storage.AlignedBuffer(SectorSize)
		if err := d.ReadSectors(b, at, min(SectorSize, d.Size-at)); err != nil {
			return d.IOError("read BAT", at, err)
		}
		for len(entries) > 0 && format.SectorOfEntry(entries[0]) == at {
			binary.LittleEndian.PutUint32(b[format.HeaderSize+format.BATEntrySize*int64(entries[0])-at:], 0)
			entries = entries[1:]
		}
		if _, err := d.File.WriteAt(b, at); err != nil {
			return d.IOError("write BAT", at, err)
		}
	}
	return d.IOError("sync", -1, d.File.Sync())
}

// patchHeader writes the header over the beginning of the file's first sector,
// durably.
func patchHeader(d *format.Delta) error {
	b := storage.AlignedBuffer(SectorSize)
	if err := d.ReadSectors(b, 0, min(SectorSize, d.Size)); err != nil {
		return d.IOError("read header", 0, err)
	}
	copy(b, d.Header.Encode())
	if _, err := d.File.WriteAt(b, 0); err != nil {
		return d.IOError("write header", 0, err)
	}
	return d.IOError("sync", -1, d.File.Sync())
}
