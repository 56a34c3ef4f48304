package ploop

import (
	"encoding/binary"
	"errors"
	"slices"
)

// lookExt judges the format extension, whose clusters count as used.
func (c *ImageCheck) lookExt(d *Delta, used positions) error {
	h := &d.hdr
	// Without a valid in_use nobody reads it; but if its space is cut off,
	// the field that points there must go first.
	c.dropExt = h.ExtOff != 0
	if d.extErr != nil {
		var fe *FormatError
		if !errors.As(d.extErr, &fe) || !errors.Is(d.extErr, ErrCorrupt) {
			return d.extErr
		}
		c.found(FindingExtension, fixExtension, fe)
	}
	if d.ext == nil {
		return nil
	}
	places := slices.Clone(d.ext.places)
	slices.Sort(places)
	for i, at := range places {
		// openDelta saw to it that each lies in the data and in the file. QEMU
		// aligns them; that others do nobody promises.
		first, last := h.positionOf(at), h.positionOf(at+uint64(h.ClusterSectors)-1)
		twice := i > 0 && places[i-1]+uint64(h.ClusterSectors) > at
		if twice || used.has(first) || used.has(last) {
			c.found(FindingExtension, fixExtension, d.badExt(int64(at)*SectorSize, ErrCorrupt, "cluster", "one that something else uses as well", "one of its own").(*FormatError))
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
func (c *ImageCheck) extGaps(h *Header, places []uint64) (n uint64) {
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
func (c *ImageCheck) repair(d *Delta) error {
	if f, ok := d.file.(*osFile); ok && f.block {
		return nil // can't be cut; Open doesn't write to it either
	}
	if c.dropExt || c.count[fixHeader] > 0 {
		if c.dropExt {
			d.hdr.ExtOff = 0
			if d.hdr.InUse == inUseClosed {
				d.hdr.InUse = 0
			}
		}
		if err := d.patchHeader(); err != nil {
			return err
		}
	}
	if c.end > d.size && c.count[fixLength] > 0 {
		if err := d.lengthen(c.end); err != nil {
			return err
		}
	}
	if len(c.clear) > 0 {
		if err := d.clearEntries(c.clear); err != nil {
			return err
		}
	}
	if c.more {
		return nil // still corrupt: the findings stay, the next repair goes on
	}
	done := &c.done
	*done = [numFixes]bool{fixHeader: true, fixLength: true, fixEntry: true, fixExtension: true}
	if done[fixLeak] = c.badEntries == 0; done[fixLeak] && c.LeakBytes > 0 {
		if err := d.file.Truncate(c.end); err != nil {
			return d.ioError("truncate", c.end, err)
		}
	}
	if err := d.ioError("sync", -1, d.file.Sync()); err != nil {
		return err
	}
	if done[fixInUse] = c.count[fixHeld] == 0; done[fixInUse] {
		was := d.hdr
		d.hdr.setEmpty(c.Allocated == 0)
		if d.hdr.InUse == inUseDirty {
			d.hdr.InUse = 0
		}
		if d.hdr != was {
			if err := d.patchHeader(); err != nil {
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
func (d *Delta) lengthen(end int64) error {
	if err := d.file.Truncate(end); err != nil {
		return d.ioError("truncate", end, err)
	}
	d.size = end
	return d.ioError("sync", -1, d.file.Sync())
}

// clearEntries writes 0 over entries of the BAT, which are in rising order.
func (d *Delta) clearEntries(entries []uint64) error {
	for len(entries) > 0 {
		at := sectorOfEntry(entries[0])
		b := AlignedBuffer(SectorSize)
		if err := d.readSectors(b, at, min(SectorSize, d.size-at)); err != nil {
			return d.ioError("read BAT", at, err)
		}
		for len(entries) > 0 && sectorOfEntry(entries[0]) == at {
			binary.LittleEndian.PutUint32(b[headerSize+batEntrySize*int64(entries[0])-at:], 0)
			entries = entries[1:]
		}
		if _, err := d.file.WriteAt(b, at); err != nil {
			return d.ioError("write BAT", at, err)
		}
	}
	return d.ioError("sync", -1, d.file.Sync())
}

// patchHeader writes the header over the beginning of the file's first sector,
// durably.
func (d *Delta) patchHeader() error {
	b := AlignedBuffer(SectorSize)
	if err := d.readSectors(b, 0, min(SectorSize, d.size)); err != nil {
		return d.ioError("read header", 0, err)
	}
	copy(b, d.hdr.encode())
	if _, err := d.file.WriteAt(b, 0); err != nil {
		return d.ioError("write header", 0, err)
	}
	return d.ioError("sync", -1, d.file.Sync())
}
