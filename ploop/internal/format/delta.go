// Package format is one image file, open: its header, its BAT, its extension, and the
// operations of its storage with errors that name it. It judges what is in the file and trusts
// none of it.
package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/bits"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/bundle"
	"holdfast/ploop/internal/storage"
	"holdfast/ploop/internal/table"
)

// Delta is one open image file.
type Delta struct {
	Ref    image.Ref
	File   storage.File
	Header Header
	Size   int64 // of the file at open, in bytes
	Level  int

	Ext    *Extension // what the format extension held; nil: none, or not valid
	ExtErr error      // why it couldn't be taken

	tolerate Tolerance
	Flaws    []*image.FormatError // of the header, tolerated
	Guess    *DataOffGuess        // of where the data begins; nil: as the header says
}

// Open opens one file and checks all of it but the BAT's entries.
func Open(ref image.Ref, open storage.Opener, write, direct bool, tolerate Tolerance) (*Delta, error) {
	return OpenKnown(ref, open, write, direct, tolerate, 0)
}

// OpenKnown opens a raw file that is known to have had rawSize bytes, 0: not known. Its
// owner may have lengthened it since: what lies behind is no part of the image.
func OpenKnown(ref image.Ref, open storage.Opener, write, direct bool, tolerate Tolerance, rawSize int64) (*Delta, error) {
	f, err := open(ref.Path, write, direct)
	if err != nil {
		return nil, err
	}
	d := &Delta{Ref: ref, File: f, tolerate: tolerate}
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
	f, ok := d.File.(*storage.OSFile)
	if !ok || f.Direct.Unit == image.SectorSize {
		return nil
	}
	u := f.Direct.Unit
	if !d.Ref.Raw && (d.Header.ClusterSize()%u != 0 || int64(d.Header.DataStart())*image.SectorSize%u != 0) || write && d.Size%u != 0 {
		return f.Buffered()
	}
	return nil
}

// WroteFirst is told of the first write to the image, at its beginning.
func (d *Delta) WroteFirst() {
	if f, ok := d.File.(*storage.OSFile); ok {
		f.WroteFirst()
	}
}

// IOError says that an operation on the file failed; nil stays nil. off is in bytes, -1: the whole
// file.
func (d *Delta) IOError(op string, off int64, err error) error {
	if err == nil {
		return nil
	}
	return &image.IOError{Op: op, File: d.Ref.Path, Offset: off, Err: err}
}

// Read fills p from the file; past the end of a raw base there are zeroes, even where its owner
// has lengthened the file.
func (d *Delta) Read(p []byte, off int64) error {
	n, err := d.File.ReadAt(p, off)
	if d.Ref.Raw && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) && off+int64(n) >= d.Size {
		clear(p[min(int64(len(p)), max(d.Size-off, 0)):])
		return nil
	}
	return d.IOError("read", off, err)
}

// Write writes p at off of the file.
func (d *Delta) Write(p []byte, off int64) error {
	_, err := d.File.WriteAt(p, off)
	return d.IOError("write", off, err)
}

// Format is raw, ploop1 or ploop2.
func (d *Delta) Format() string {
	if d.Ref.Raw {
		return "raw"
	}
	return fmt.Sprintf("ploop%d", d.Header.Version)
}

// Diverged is the ErrDiverged of this file.
func (d *Delta) Diverged(off int64, what string, found, want any) error {
	return &image.FormatError{File: d.Ref.Path, Offset: off, What: what, Found: fmt.Sprint(found), Want: fmt.Sprint(want), Class: image.ErrDiverged}
}

func (d *Delta) readHead(rawSize int64) (err error) {
	if d.Size, err = d.File.Size(); err != nil {
		return d.IOError("size", -1, err)
	}
	if d.Ref.Raw {
		if d.Size < rawSize {
			return &image.FormatError{File: d.Ref.Path, Offset: -1, What: "size of a raw image", Class: image.ErrDiverged,
				Found: fmt.Sprintf("%d bytes", d.Size), Want: fmt.Sprintf("at least the %d that it had", rawSize)}
		}
		if rawSize > 0 {
			d.Size = rawSize
		}
		return d.rawHead()
	}
	b := storage.AlignedBuffer(image.SectorSize)
	n := int(min(d.Size, image.SectorSize))
	if n > 0 {
		// A file shorter than a sector ends the read early; ParseHeader says it.
		if _, err := d.File.ReadAt(b[:n], 0); err != nil {
			return d.IOError("read header", 0, err)
		}
	}
	h, err := parseHeader(d.Ref.Path, b[:n], d.Size)
	if err != nil {
		return d.explain(err, b[:n])
	}
	d.Header = *h
	if err := d.tolerateHeader(); err != nil {
		return err
	}
	if h := &d.Header; h.ExtOff != 0 && h.InUse == InUseClosed {
		d.Ext, d.ExtErr = readExtension(d)
	}
	return nil
}

// explain says what a file is that isn't a ploop image, if it is a descriptor.
func (d *Delta) explain(err error, head []byte) error {
	text := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\ufeff")), " \t\r\n")
	if !errors.Is(err, image.ErrNotPloop) || !bytes.HasPrefix(text, []byte("<")) {
		return err
	}
	n, bad := bundle.Read(d.Ref.Path)
	if bad != nil {
		return err
	}
	return &image.FormatError{File: d.Ref.Path, Offset: -1, What: "file", Found: "a disk descriptor", Want: n.Advice(), Class: image.ErrNotImage}
}

// LeftInUse is the ErrInUse of an image that is open for writing, or was and wasn't closed.
func (d *Delta) LeftInUse() error {
	if d.Ref.Raw || d.Header.InUse != InUseDirty {
		return nil
	}
	return &image.FormatError{File: d.Ref.Path, Offset: 44, What: "in_use", Class: image.ErrInUse,
		Found: "the image was not closed cleanly", Want: "0; if nobody has it open, run 'holdfast image check --repair' on it"}
}

// RawCluster is the cluster size by which a raw file alone is served.
const RawCluster = 1 << 20

// rawHead gives a raw file the geometry of an image whose clusters all lie
// where the disk has them. Over a raw base the stack's own cluster size rules.
func (d *Delta) rawHead() error {
	if d.Size == 0 || d.Size%image.SectorSize != 0 && !d.tolerate.OddRaw {
		return &image.FormatError{File: d.Ref.Path, Offset: -1, What: "size of a raw image", Class: image.ErrGeometry,
			Found: fmt.Sprintf("%d bytes", d.Size), Want: "a positive multiple of 512 (image convert pads a copy)"}
	}
	d.SetRawCluster(RawCluster / image.SectorSize)
	if n := d.Header.Clusters(); n > MaxBATEntries {
		return &image.FormatError{File: d.Ref.Path, Offset: -1, What: "size of a raw image", Class: image.ErrLimit,
			Found: fmt.Sprintf("%d bytes", d.Size), Want: fmt.Sprintf("at most %d", int64(MaxBATEntries)*RawCluster)}
	}
	return nil
}

// SetRawCluster gives a raw file the geometry of an image with clusters of so many sectors.
func (d *Delta) SetRawCluster(sectors uint32) {
	d.Header = Header{ClusterSectors: sectors, Sectors: (uint64(d.Size) + image.SectorSize - 1) / image.SectorSize}
	d.Header.BATEntries = uint32(min(d.Header.Clusters(), math.MaxUint32))
}

// Problem is what can be wrong with one entry.
type Problem int

const (
	EntryBeyondDisk Problem = iota
	EntryBelowData
	EntryMisaligned
	EntryBeyondFile
	EntryCut // begins in the file and ends behind it
	EntryDuplicate
)

// BadEntry describes a problem as an error.
func (d *Delta) BadEntry(i uint64, raw uint32, p Problem) *image.FormatError {
	h := &d.Header
	at := h.SectorOf(raw)
	e := &image.FormatError{File: d.Ref.Path, Offset: HeaderSize + BATEntrySize*int64(i), Class: image.ErrCorrupt,
		What: fmt.Sprintf("BAT entry of cluster %d", i), Found: fmt.Sprintf("%d (sector %d)", raw, at)}
	switch p {
	case EntryBeyondDisk:
		e.Want = fmt.Sprintf("0, the disk has %d clusters", h.Clusters())
	case EntryBelowData:
		e.Want = fmt.Sprintf("a sector from %d on, where data begins", h.DataStart())
	case EntryMisaligned:
		e.Want = fmt.Sprintf("a multiple of %d sectors from sector %d on", h.ClusterSectors, h.DataStart())
	case EntryBeyondFile:
		e.Want = fmt.Sprintf("a cluster that ends within the file, at or before sector %d", d.Size/image.SectorSize)
	case EntryCut:
		e.Found += fmt.Sprintf(", of which the file has %d bytes", d.Size-int64(at)*image.SectorSize)
		e.Want = fmt.Sprintf("a cluster of %d bytes", h.ClusterSize())
	case EntryDuplicate:
		e.Found += ", which another entry has as well"
		e.Want = "a cluster of its own"
	}
	return e
}

// CheckEntry judges one entry by itself; a duplicate only ScanBAT can see.
func (d *Delta) CheckEntry(i uint64, raw uint32) (Problem, bool) {
	h := &d.Header
	at, start := h.SectorOf(raw), h.DataStart()
	switch {
	case i >= h.Clusters():
		return EntryBeyondDisk, false
	case at < start:
		return EntryBelowData, false
	case (at-start)%uint64(h.ClusterSectors) != 0:
		return EntryMisaligned, false
	case at >= (uint64(d.Size)+image.SectorSize-1)/image.SectorSize:
		return EntryBeyondFile, false
	case at+uint64(h.ClusterSectors) > uint64(d.Size)/image.SectorSize:
		return EntryCut, false
	}
	return 0, true
}

// HoldsCluster says whether a cluster begins at a sector of the file.
func (d *Delta) HoldsCluster(sector uint64) bool {
	start := d.Header.DataStart()
	return sector >= start && (sector-start)%uint64(d.Header.ClusterSectors) == 0 && sector < (uint64(d.Size)+image.SectorSize-1)/image.SectorSize
}

// FileClusters is how many whole clusters the file holds.
func (d *Delta) FileClusters() uint64 {
	room := uint64(d.Size)/image.SectorSize - min(uint64(d.Size)/image.SectorSize, d.Header.DataStart())
	return room / uint64(d.Header.ClusterSectors)
}

// Positions is a flat set of places in a file, for one scan of its BAT.
type Positions []uint64

// NewPositions has a place for a cluster that the file's end cuts, too.
func (d *Delta) NewPositions() (Positions, error) {
	n := d.FileClusters() + 1
	if d.Size/image.SectorSize > int64(table.EntrySector) {
		return nil, &image.FormatError{File: d.Ref.Path, Offset: -1, What: "file size", Class: image.ErrLimit,
			Found: fmt.Sprintf("%d bytes", d.Size), Want: fmt.Sprintf("at most %d sectors", table.EntrySector)}
	}
	if n > maxFileClusters {
		return nil, &image.FormatError{File: d.Ref.Path, Offset: -1, What: "file size", Class: image.ErrLimit,
			Found: fmt.Sprintf("%d bytes, %d clusters", d.Size, n), Want: fmt.Sprintf("at most %d clusters", uint64(maxFileClusters))}
	}
	return make(Positions, (n+63)/64), nil
}

// Has says whether i is a member.
func (p Positions) Has(i uint64) bool { return p[i/64]>>(i%64)&1 != 0 }

// Add makes i a member.
func (p Positions) Add(i uint64) { p[i/64] |= 1 << (i % 64) }

// All gives the members in rising order.
func (p Positions) All() iter.Seq[uint64] {
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

// ScanBAT reads the whole BAT. It calls visit for each good entry and bad for
// each other one; either ends the scan by an error. It returns the places in
// use, which the file's end may cut, and an entry beyond the disk may use.
func (d *Delta) ScanBAT(visit func(i, sector uint64), bad func(i uint64, raw uint32, p Problem) error) (Positions, error) {
	used, err := d.NewPositions()
	if err != nil {
		return nil, err
	}
	h := &d.Header
	err = d.rawEntries(func(i uint64, raw uint32) error {
		p, ok := d.CheckEntry(i, raw)
		sector := h.SectorOf(raw)
		if ok || p == EntryCut || p == EntryBeyondDisk && d.HoldsCluster(sector) {
			pos := h.PositionOf(sector)
			if used.Has(pos) {
				p, ok = EntryDuplicate, false
			}
			used.Add(pos)
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
	h := &d.Header
	// Whole sectors, for direct I/O: the last one may go past the BAT.
	end := (h.BATEnd() + image.SectorSize - 1) / image.SectorSize * image.SectorSize
	buf := storage.AlignedBuffer(int(min(end, batChunk)))
	i := uint64(0)
	for off := int64(0); off < end; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), end-off)]
		if err := d.ReadSectors(b, off, min(h.BATEnd()-off, int64(len(b)))); err != nil {
			return d.IOError("read BAT", off, err)
		}
		if off == 0 {
			b = b[HeaderSize:]
		}
		for ; len(b) >= BATEntrySize && i < uint64(h.BATEntries); b, i = b[BATEntrySize:], i+1 {
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

// ReadSectors reads whole sectors, of which the file may lack all behind the
// first need bytes.
func (d *Delta) ReadSectors(b []byte, off, need int64) error {
	n, err := d.File.ReadAt(b, off)
	if errors.Is(err, io.ErrUnexpectedEOF) && int64(n) >= need {
		return nil
	}
	return err
}

// refuse is the bad callback of those who want no bad entry at all.
func (d *Delta) refuse(i uint64, raw uint32, p Problem) error {
	return d.BadEntry(i, raw, p)
}
