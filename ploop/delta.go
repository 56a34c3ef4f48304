package ploop

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/bits"
)

// Delta is one open image file.
type Delta struct {
	ref   ImageRef
	file  file
	hdr   Header
	size  int64 // of the file at open, in bytes
	level int

	ext    *extension // what the format extension held; nil: none, or not valid
	extErr error      // why it couldn't be taken

	tolerate damageTolerance
	flaws    []*FormatError // of the header, tolerated
	guess    *dataOffGuess  // of where the data begins; nil: as the header says
}

// openTolerant opens one file and checks all of it but the BAT's entries.
func openTolerant(ref ImageRef, open opener, write, direct bool, tolerate damageTolerance) (*Delta, error) {
	return openKnown(ref, open, write, direct, tolerate, 0)
}

// openKnown opens a raw file that is known to have had rawSize bytes, 0: not known. Its
// owner may have lengthened it since: what lies behind is no part of the image.
func openKnown(ref ImageRef, open opener, write, direct bool, tolerate damageTolerance, rawSize int64) (*Delta, error) {
	f, err := open(ref.Path, write, direct)
	if err != nil {
		return nil, err
	}
	d := &Delta{ref: ref, file: f, tolerate: tolerate}
	if err := d.readHead(rawSize); err != nil {
		f.Close()
		return nil, err
	}
	if err := d.fitUnits(write); err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

// fitUnits leaves direct I/O to images whose clusters lie in whole units of it, and whose
// end, if that may be written, does: nearly nothing would be direct in the others.
func (d *Delta) fitUnits(write bool) error {
	f, ok := d.file.(*osFile)
	if !ok || f.dio.unit == SectorSize {
		return nil
	}
	u := f.dio.unit
	if !d.ref.Raw && (d.hdr.ClusterSize()%u != 0 || int64(d.hdr.DataStart())*SectorSize%u != 0) || write && d.size%u != 0 {
		return f.buffered()
	}
	return nil
}

// wroteFirst is told of the first write to the image, at its beginning.
func (d *Delta) wroteFirst() {
	if f, ok := d.file.(*osFile); ok {
		f.wroteFirst()
	}
}

func (d *Delta) ioError(op string, off int64, err error) error {
	if err == nil {
		return nil
	}
	return &IOError{Op: op, File: d.ref.Path, Offset: off, Err: err}
}

// read fills p from the file; past the end of a raw base there are zeroes, even where its owner
// has lengthened the file.
func (d *Delta) read(p []byte, off int64) error {
	n, err := d.file.ReadAt(p, off)
	if d.ref.Raw && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) && off+int64(n) >= d.size {
		clear(p[min(int64(len(p)), max(d.size-off, 0)):])
		return nil
	}
	return d.ioError("read", off, err)
}

func (d *Delta) write(p []byte, off int64) error {
	_, err := d.file.WriteAt(p, off)
	return d.ioError("write", off, err)
}

func (d *Delta) format() string {
	if d.ref.Raw {
		return "raw"
	}
	return fmt.Sprintf("ploop%d", d.hdr.Version)
}

func (d *Delta) diverged(off int64, what string, found, want any) error {
	return &FormatError{File: d.ref.Path, Offset: off, What: what, Found: fmt.Sprint(found), Want: fmt.Sprint(want), Class: ErrDiverged}
}

func (d *Delta) readHead(rawSize int64) (err error) {
	if d.size, err = d.file.Size(); err != nil {
		return d.ioError("size", -1, err)
	}
	if d.ref.Raw {
		if d.size < rawSize {
			return &FormatError{File: d.ref.Path, Offset: -1, What: "size of a raw image", Class: ErrDiverged,
				Found: fmt.Sprintf("%d bytes", d.size), Want: fmt.Sprintf("at least the %d that it had", rawSize)}
		}
		if rawSize > 0 {
			d.size = rawSize
		}
		return d.rawHead()
	}
	b := AlignedBuffer(SectorSize)
	n := int(min(d.size, SectorSize))
	if n > 0 {
		// A file shorter than a sector ends the read early; ParseHeader says it.
		if _, err := d.file.ReadAt(b[:n], 0); err != nil {
			return d.ioError("read header", 0, err)
		}
	}
	h, err := parseHeader(d.ref.Path, b[:n], d.size)
	if err != nil {
		return d.explain(err, b[:n])
	}
	d.hdr = *h
	if err := d.tolerateHeader(); err != nil {
		return err
	}
	if h := &d.hdr; h.ExtOff != 0 && h.InUse == inUseClosed {
		d.ext, d.extErr = readExtension(d)
	}
	return nil
}

// explain says what a file is that isn't a ploop image, if it is a descriptor.
func (d *Delta) explain(err error, head []byte) error {
	text := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\ufeff")), " \t\r\n")
	if !errors.Is(err, ErrNotPloop) || !bytes.HasPrefix(text, []byte("<")) {
		return err
	}
	n, bad := readBundle(d.ref.Path)
	if bad != nil {
		return err
	}
	return &FormatError{File: d.ref.Path, Offset: -1, What: "file", Found: "a disk descriptor", Want: n.advice(), Class: ErrNotImage}
}

// leftInUse is the ErrInUse of an image that is open for writing, or was and wasn't closed.
func (d *Delta) leftInUse() error {
	if d.ref.Raw || d.hdr.InUse != inUseDirty {
		return nil
	}
	return &FormatError{File: d.ref.Path, Offset: 44, What: "in_use", Class: ErrInUse,
		Found: "the image was not closed cleanly", Want: "0; if nobody has it open, run 'holdfast image check --repair' on it"}
}

// rawCluster is the cluster size by which a raw file alone is served.
const rawCluster = 1 << 20

// rawHead gives a raw file the geometry of an image whose clusters all lie
// where the disk has them. Over a raw base the stack's own cluster size rules.
func (d *Delta) rawHead() error {
	if d.size == 0 || d.size%SectorSize != 0 && !d.tolerate.oddRaw {
		return &FormatError{File: d.ref.Path, Offset: -1, What: "size of a raw image", Class: ErrGeometry,
			Found: fmt.Sprintf("%d bytes", d.size), Want: "a positive multiple of 512 (image convert pads a copy)"}
	}
	d.setRawCluster(rawCluster / SectorSize)
	if n := d.hdr.Clusters(); n > MaxBATEntries {
		return &FormatError{File: d.ref.Path, Offset: -1, What: "size of a raw image", Class: ErrLimit,
			Found: fmt.Sprintf("%d bytes", d.size), Want: fmt.Sprintf("at most %d", int64(MaxBATEntries)*rawCluster)}
	}
	return nil
}

func (d *Delta) setRawCluster(sectors uint32) {
	d.hdr = Header{ClusterSectors: sectors, Sectors: (uint64(d.size) + SectorSize - 1) / SectorSize}
	d.hdr.BATEntries = uint32(min(d.hdr.Clusters(), math.MaxUint32))
}

// batProblem is what can be wrong with one entry.
type batProblem int

const (
	entryBeyondDisk batProblem = iota
	entryBelowData
	entryMisaligned
	entryBeyondFile
	entryCut // begins in the file and ends behind it
	entryDuplicate
)

// badEntry describes a problem as an error.
func (d *Delta) badEntry(i uint64, raw uint32, p batProblem) *FormatError {
	h := &d.hdr
	at := h.sectorOf(raw)
	e := &FormatError{File: d.ref.Path, Offset: headerSize + batEntrySize*int64(i), Class: ErrCorrupt,
		What: fmt.Sprintf("BAT entry of cluster %d", i), Found: fmt.Sprintf("%d (sector %d)", raw, at)}
	switch p {
	case entryBeyondDisk:
		e.Want = fmt.Sprintf("0, the disk has %d clusters", h.Clusters())
	case entryBelowData:
		e.Want = fmt.Sprintf("a sector from %d on, where data begins", h.DataStart())
	case entryMisaligned:
		e.Want = fmt.Sprintf("a multiple of %d sectors from sector %d on", h.ClusterSectors, h.DataStart())
	case entryBeyondFile:
		e.Want = fmt.Sprintf("a cluster that ends within the file, at or before sector %d", d.size/SectorSize)
	case entryCut:
		e.Found += fmt.Sprintf(", of which the file has %d bytes", d.size-int64(at)*SectorSize)
		e.Want = fmt.Sprintf("a cluster of %d bytes", h.ClusterSize())
	case entryDuplicate:
		e.Found += ", which another entry has as well"
		e.Want = "a cluster of its own"
	}
	return e
}

// checkEntry judges one entry by itself; a duplicate only scanBAT can see.
func (d *Delta) checkEntry(i uint64, raw uint32) (batProblem, bool) {
	h := &d.hdr
	at, start := h.sectorOf(raw), h.DataStart()
	switch {
	case i >= h.Clusters():
		return entryBeyondDisk, false
	case at < start:
		return entryBelowData, false
	case (at-start)%uint64(h.ClusterSectors) != 0:
		return entryMisaligned, false
	case at >= (uint64(d.size)+SectorSize-1)/SectorSize:
		return entryBeyondFile, false
	case at+uint64(h.ClusterSectors) > uint64(d.size)/SectorSize:
		return entryCut, false
	}
	return 0, true
}

// holdsCluster says whether a cluster begins at a sector of the file.
func (d *Delta) holdsCluster(sector uint64) bool {
	start := d.hdr.DataStart()
	return sector >= start && (sector-start)%uint64(d.hdr.ClusterSectors) == 0 && sector < (uint64(d.size)+SectorSize-1)/SectorSize
}

// fileClusters is how many whole clusters the file holds.
func (d *Delta) fileClusters() uint64 {
	room := uint64(d.size)/SectorSize - min(uint64(d.size)/SectorSize, d.hdr.DataStart())
	return room / uint64(d.hdr.ClusterSectors)
}

// positions is a flat set of places in a file, for one scan of its BAT.
type positions []uint64

// newPositions has a place for a cluster that the file's end cuts, too.
func (d *Delta) newPositions() (positions, error) {
	n := d.fileClusters() + 1
	if d.size/SectorSize > int64(entrySector) {
		return nil, &FormatError{File: d.ref.Path, Offset: -1, What: "file size", Class: ErrLimit,
			Found: fmt.Sprintf("%d bytes", d.size), Want: fmt.Sprintf("at most %d sectors", entrySector)}
	}
	if n > maxFileClusters {
		return nil, &FormatError{File: d.ref.Path, Offset: -1, What: "file size", Class: ErrLimit,
			Found: fmt.Sprintf("%d bytes, %d clusters", d.size, n), Want: fmt.Sprintf("at most %d clusters", uint64(maxFileClusters))}
	}
	return make(positions, (n+63)/64), nil
}

func (p positions) has(i uint64) bool { return p[i/64]>>(i%64)&1 != 0 }
func (p positions) add(i uint64)      { p[i/64] |= 1 << (i % 64) }

// all gives the members in rising order.
func (p positions) all() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for w, v := range p {
			for ; v != 0; v &= v - 1 {
				if !yield(uint64(w)*64 + uint64(bits.TrailingZeros64(v))) {
					return
				}
			}
		}
	}
}

// batChunk is how much of a BAT is read at once, in bytes.
const batChunk = 1 << 20

// scanBAT reads the whole BAT. It calls visit for each good entry and bad for
// each other one; either ends the scan by an error. It returns the places in
// use, which the file's end may cut, and an entry beyond the disk may use.
func (d *Delta) scanBAT(visit func(i, sector uint64), bad func(i uint64, raw uint32, p batProblem) error) (positions, error) {
	used, err := d.newPositions()
	if err != nil {
		return nil, err
	}
	h := &d.hdr
	err = d.rawEntries(func(i uint64, raw uint32) error {
		p, ok := d.checkEntry(i, raw)
		sector := h.sectorOf(raw)
		if ok || p == entryCut || p == entryBeyondDisk && d.holdsCluster(sector) {
			pos := h.positionOf(sector)
			if used.has(pos) {
				p, ok = entryDuplicate, false
			}
			used.add(pos)
		}
		if ok {
			visit(i, sector)
			return nil
		}
		return bad(i, raw, p)
	})
	return used, err
}

// rawEntries reads the whole BAT and visits what isn't 0.
func (d *Delta) rawEntries(visit func(i uint64, raw uint32) error) error {
	h := &d.hdr
	// Whole sectors, for direct I/O: the last one may go past the BAT.
	end := (h.batEnd() + SectorSize - 1) / SectorSize * SectorSize
	buf := AlignedBuffer(int(min(end, batChunk)))
	i := uint64(0)
	for off := int64(0); off < end; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), end-off)]
		if err := d.readSectors(b, off, min(h.batEnd()-off, int64(len(b)))); err != nil {
			return d.ioError("read BAT", off, err)
		}
		if off == 0 {
			b = b[headerSize:]
		}
		for ; len(b) >= batEntrySize && i < uint64(h.BATEntries); b, i = b[batEntrySize:], i+1 {
			raw := binary.LittleEndian.Uint32(b)
			if raw == 0 {
				continue
			}
			if err := visit(i, raw); err != nil {
				return err
			}
		}
	}
	return nil
}

// readSectors reads whole sectors, of which the file may lack all behind the
// first need bytes.
func (d *Delta) readSectors(b []byte, off, need int64) error {
	n, err := d.file.ReadAt(b, off)
	if errors.Is(err, io.ErrUnexpectedEOF) && int64(n) >= need {
		return nil
	}
	return err
}

// refuse is the bad callback of those who want no bad entry at all.
func (d *Delta) refuse(i uint64, raw uint32, p batProblem) error {
	return d.badEntry(i, raw, p)
}
