package ploop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// CheckOptions say what a check may do.
type CheckOptions struct {
	// Repair mends what can be mended without a guess: it clears the in_use
	// of an image that is otherwise sound, cuts off space at the end of the
	// file that nothing refers to, clears BAT entries that point outside the
	// file or the disk, and drops a format extension that is damaged.
	//
	// Entries that are misaligned, lie in the header or claim a cluster that
	// another one has are never repaired: whose data lies there, nobody can
	// tell from the image, and a wrong guess destroys it for good. A file with
	// one of those isn't written at all.
	Repair bool
}

// Kinds of findings.
const (
	FindingHeader     = "header"          // the header contradicts itself or the file
	FindingInUse      = "in-use"          // not closed cleanly
	FindingBeyondDisk = "bat-beyond-disk" // an entry for a cluster that the disk doesn't have
	FindingBelowData  = "bat-below-data"  // an entry that points into header or BAT
	FindingMisaligned = "bat-misaligned"
	FindingBeyondFile = "bat-beyond-file"
	FindingDuplicate  = "bat-duplicate" // two entries for one place
	FindingExtension  = "extension"     // the format extension is damaged
	FindingLeak       = "leak"          // the end of the file isn't used
	FindingGeometry   = "geometry"      // the images don't fit each other
)

var entryFindings = map[batProblem]string{
	entryBeyondDisk: FindingBeyondDisk,
	entryBelowData:  FindingBelowData,
	entryMisaligned: FindingMisaligned,
	entryBeyondFile: FindingBeyondFile,
	entryDuplicate:  FindingDuplicate,
}

// Finding is one thing that is wrong.
type Finding struct {
	Kind     string `json:"kind"`
	File     string `json:"file"`
	Offset   int64  `json:"offset"` // in bytes; -1: the file as a whole
	Message  string `json:"message"`
	Repaired bool   `json:"repaired"`
}

// maxClear bounds how many entries one repair clears.
const maxClear = 1 << 20

// maxFindings bounds the list of one image; the rest is only counted.
const maxFindings = 1000

// CheckReport is the verdict on a stack.
type CheckReport struct {
	Images []*ImageCheck `json:"images"` // base first
	// Stack holds what is wrong between images that are each sound.
	Stack []Finding `json:"stack,omitempty"`
}

// ImageCheck is the verdict on one image, before repair.
type ImageCheck struct {
	File      string `json:"file"`
	Format    string `json:"format,omitempty"` // as Format's text; empty: the header can't be read
	InUse     bool   `json:"in_use"`           // was not closed cleanly
	Clusters  uint64 `json:"clusters"`         // of the disk
	Allocated uint64 `json:"allocated"`        // clusters of the disk that the file holds
	// Free counts clusters between used ones that nothing refers to. They are
	// no fault: the next allocations take them.
	Free uint64 `json:"free"`
	// Leaks counts clusters, and the last one's part, behind the last used.
	Leaks       uint64    `json:"leaks"`
	LeakBytes   int64     `json:"leak_bytes"`
	Corruptions uint64    `json:"corruptions"`
	Repaired    uint64    `json:"repaired"` // of corruptions and leaks
	Findings    []Finding `json:"findings,omitempty"`

	hdr        *Header
	ext        *extension
	dropExt    bool     // ext_off says something that can't be kept
	clear      []uint64 // entries to be cleared
	end        int64    // of what is used, in bytes
	more       bool     // of them than one repair clears
	hopeless   bool     // has what is never repaired
	repairable bool
}

// Exit codes of a check, the same as qemu-img's; 1 is "could not check".
const (
	ExitClean   = 0
	ExitCorrupt = 2
	ExitLeaks   = 3
)

// ExitCode is the verdict in one number. What was repaired doesn't count.
func (r *CheckReport) ExitCode() int {
	code := ExitClean
	if len(r.Stack) > 0 {
		return ExitCorrupt
	}
	for _, c := range r.Images {
		for _, f := range c.Findings {
			switch {
			case f.Repaired:
			case f.Kind != FindingLeak:
				return ExitCorrupt
			default:
				code = ExitLeaks
			}
		}
	}
	return code
}

// Check reads the images of a stack, base first, and tells what is wrong with
// each of them and between them. It takes the images' locks, shared for
// looking and exclusive for repairing, so that an image in use is [ErrLocked].
// An error says that no verdict was possible; what is wrong with an image is
// in the report and is no error.
//
// Clusters that nothing refers to are leaks only behind the last used one, as
// in qemu-img's check: the gaps inside a file are reused before it grows.
func Check(refs []ImageRef, o CheckOptions) (*CheckReport, error) {
	return check(refs, o, openStill)
}

func check(refs []ImageRef, o CheckOptions, open opener) (*CheckReport, error) {
	if len(refs) == 0 {
		return nil, fmt.Errorf("%w: a stack needs at least one image", ErrGeometry)
	}
	if len(refs) > MaxDeltas {
		return nil, fmt.Errorf("%w: a stack of %d images, at most %d are possible", ErrLimit, len(refs), MaxDeltas)
	}
	r := &CheckReport{}
	for _, ref := range refs {
		c, err := checkImage(ref, open, false)
		if err == nil && o.Repair && c.repairable && !c.hopeless {
			// Again under the exclusive lock: what was seen may be old.
			c, err = checkImage(ref, open, true)
		}
		if err != nil {
			return nil, err
		}
		r.Images = append(r.Images, c)
	}
	r.checkStack(refs)
	return r, nil
}

// checkStack looks whether the images lie over one another.
func (r *CheckReport) checkStack(refs []ImageRef) {
	if len(refs) < 2 {
		return
	}
	s := &Stack{}
	for level, c := range r.Images {
		if c.hdr == nil {
			return // has its finding already
		}
		d := &delta{ref: refs[level], hdr: *c.hdr, level: level, size: int64(c.hdr.Sectors) * SectorSize}
		s.deltas = append(s.deltas, d)
		s.top = d
	}
	for _, err := range []error{distinct(refs), s.fit()} {
		var fe *FormatError
		if errors.As(err, &fe) {
			r.Stack = append(r.Stack, Finding{Kind: FindingGeometry, File: fe.File, Offset: fe.Offset, Message: fe.Error()})
		}
	}
}

// checkImage checks one file, and with repair mends it under the same lock.
func checkImage(ref ImageRef, open opener, repair bool) (*ImageCheck, error) {
	c := &ImageCheck{File: ref.Path}
	d, err := openDelta(ref, open, repair, true)
	var fe *FormatError
	if errors.As(err, &fe) && errors.Is(err, ErrCorrupt) {
		c.hopeless = true
		c.found(FindingHeader, fe)
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.file.Close()
	c.hdr, c.Format, c.Clusters = &d.hdr, d.format(), d.hdr.Clusters()
	if ref.Raw {
		return c, nil
	}
	if err := c.look(d); err != nil {
		return nil, err
	}
	if !repair || c.hopeless {
		return c, nil
	}
	return c, c.repair(d)
}

func (c *ImageCheck) found(kind string, e *FormatError) {
	if kind != FindingLeak {
		c.Corruptions++
	}
	if len(c.Findings) < maxFindings {
		c.Findings = append(c.Findings, Finding{Kind: kind, File: e.File, Offset: e.Offset, Message: e.Error()})
	}
}

// look makes the findings.
func (c *ImageCheck) look(d *delta) error {
	h := &d.hdr
	if h.InUse == inUseDirty {
		c.InUse, c.repairable = true, true
		c.found(FindingInUse, &FormatError{File: c.File, Offset: 44, What: "in_use", Found: "the image was not closed cleanly", Want: "0", Class: ErrInUse})
	}
	used, err := d.scanBAT(func(uint64, uint64) { c.Allocated++ }, func(i uint64, raw uint32, p batProblem) error {
		c.found(entryFindings[p], d.badEntry(i, raw, p))
		if p == entryBeyondDisk || p == entryBeyondFile {
			c.repairable = true
			if len(c.clear) < maxClear {
				c.clear = append(c.clear, i)
			} else {
				c.more = true
			}
		} else {
			c.hopeless = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.end = int64(h.DataStart()) * SectorSize
	count := uint64(0)
	for pos := range used.all() {
		c.end = int64(h.sectorAt(pos+1)) * SectorSize
		c.Free += pos - count // for now the gaps up to here
		count = pos + 1
	}
	if err := c.lookExt(d, used); err != nil {
		return err
	}
	if c.LeakBytes = d.size - c.end; c.LeakBytes > 0 {
		c.Leaks = uint64((c.LeakBytes-1)/h.ClusterSize()) + 1
		c.repairable = true
		c.found(FindingLeak, &FormatError{File: c.File, Offset: c.end, What: "end of the file", Class: ErrCorrupt,
			Found: fmt.Sprintf("%d bytes that nothing refers to", c.LeakBytes), Want: "none"})
	}
	c.LeakBytes = max(c.LeakBytes, 0)
	return nil
}

// lookExt judges the format extension, whose clusters count as used.
func (c *ImageCheck) lookExt(d *delta, used positions) error {
	h := &d.hdr
	// Without a valid in_use nobody reads it; but if its space is cut off,
	// the field that points there must go first.
	c.dropExt = h.ExtOff != 0
	if d.extErr != nil {
		var fe *FormatError
		if !errors.As(d.extErr, &fe) || !errors.Is(d.extErr, ErrCorrupt) {
			return d.extErr
		}
		c.repairable = true
		c.found(FindingExtension, fe)
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
		if twice || used.has(first) || last < d.fileClusters() && used.has(last) {
			c.repairable = true
			c.found(FindingExtension, d.badExt(int64(at)*SectorSize, ErrCorrupt, "cluster", "one that something else uses as well", "one of its own").(*FormatError))
			return nil
		}
	}
	c.dropExt, c.ext = false, d.ext
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
func (c *ImageCheck) repair(d *delta) error {
	if f, ok := d.file.(*osFile); ok && f.block {
		return nil // can't be cut; Open doesn't write to it either
	}
	if c.dropExt {
		d.hdr.ExtOff = 0
		if d.hdr.InUse == inUseClosed {
			d.hdr.InUse = 0
		}
		if err := d.patch(0, d.hdr.encode()); err != nil {
			return err
		}
		if err := d.ioError("sync", -1, d.file.Sync()); err != nil {
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
	if c.LeakBytes > 0 {
		if err := d.file.Truncate(c.end); err != nil {
			return d.ioError("truncate", c.end, err)
		}
	}
	if err := d.ioError("sync", -1, d.file.Sync()); err != nil {
		return err
	}
	if d.hdr.InUse == inUseDirty {
		d.hdr.InUse = 0
		if err := d.patch(0, d.hdr.encode()); err != nil {
			return err
		}
		if err := d.ioError("sync", -1, d.file.Sync()); err != nil {
			return err
		}
	}
	for i := range c.Findings {
		c.Findings[i].Repaired = true
	}
	c.Repaired = c.Corruptions + c.Leaks
	return nil
}

// clearEntries writes 0 over entries of the BAT, which are in rising order.
func (d *delta) clearEntries(entries []uint64) error {
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

// patch overwrites the beginning of a sector.
func (d *delta) patch(at int64, p []byte) error {
	b := AlignedBuffer(SectorSize)
	if err := d.readSectors(b, at, min(SectorSize, d.size-at)); err != nil {
		return d.ioError("read header", at, err)
	}
	copy(b, p)
	_, err := d.file.WriteAt(b, at)
	return d.ioError("write header", at, err)
}
