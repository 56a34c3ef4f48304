package ploop

import (
	"errors"
	"fmt"

	"holdfast/ploop/internal/chain"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// CheckOptions say what a check may do.
type CheckOptions struct {
	// Repair mends what can be mended without a guess and without giving
	// anything up that is in the file: it clears the in_use of an image that is
	// otherwise sound, lengthens a file that ends within a cluster, clears BAT
	// entries of clusters of which the file has nothing, cuts off space at the
	// end of the file that nothing refers to, and drops a format extension that
	// is damaged. Where entries are bad nothing is cut off: it may be theirs.
	//
	// What the file no longer has is lost, and the report says so even after
	// the repair.
	//
	// Entries that are misaligned, lie in the header or claim a cluster that
	// another one has are never repaired: whose data lies there, nobody can
	// tell from the image, and a wrong guess destroys it for good. A file with
	// one of those isn't written at all. stack.Options.Damaged reads it, and so does Convert.
	Repair bool
	// Allow has Repair also do what takes something away from somebody.
	Allow Allowance
}

// Allowance is what a repair does only if it is asked for by name.
type Allowance struct {
	// OlderData clears entries of lost clusters in an image that lies over
	// another one, whose older data shows there from then on.
	OlderData bool
	// BeyondDisk clears entries of clusters behind the end of the disk,
	// although the file has them. It may be the size that is wrong.
	BeyondDisk bool
	// DataOffset corrects a wrong data_off to where the data must begin by
	// the size of the BAT, if all entries fit that.
	DataOffset bool
}

// The names by which findings say what they need.
const (
	AllowOlderData  = "older-data"
	AllowBeyondDisk = "beyond-disk"
	AllowDataOffset = "data-offset"
)

// Set allows one thing by its name.
func (a *Allowance) Set(name string) error {
	switch name {
	case AllowOlderData:
		a.OlderData = true
	case AllowBeyondDisk:
		a.BeyondDisk = true
	case AllowDataOffset:
		a.DataOffset = true
	default:
		return fmt.Errorf("%q is nothing that a repair can be allowed: there are %s, %s and %s", name, AllowOlderData, AllowBeyondDisk, AllowDataOffset)
	}
	return nil
}

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
	// Lost are ranges of the disk that should be in the file and aren't. A
	// repair doesn't bring them back. The list is bounded, LostBytes counts all.
	Lost      []DiskRange `json:"lost,omitempty"`
	LostBytes int64       `json:"lost_bytes,omitempty"`
	// Guess says what of the header isn't taken as it stands, and why.
	Guess string `json:"guess,omitempty"`

	hdr   *format.Header
	over  bool // over another image
	allow Allowance
	lost  chain.Ranges
	left  uint64           // corruptions that aren't repaired
	count [numFixes]uint64 // findings
	done  [numFixes]bool   // of what is repaired
	clear []uint64         // entries to be cleared
	end   int64            // of what is used, in bytes
	more  bool             // entries than one repair clears

	badEntries uint64 // what is cut off could be theirs
	dropExt    bool   // ext_off says something that can't be kept
}

// hopeless says that the image has what is never repaired.
func (c *ImageCheck) hopeless() bool { return c.count[fixNever] > 0 }

// repairable says that a repair has anything to do.
func (c *ImageCheck) repairable() bool {
	n := c.count[fixInUse] + c.count[fixHeader] + c.count[fixLength] + c.count[fixEntry] + c.count[fixExtension]
	return !c.hopeless() && (n > 0 || c.count[fixLeak] > 0 && c.badEntries == 0)
}

// Opens says whether the image, after repair, can be opened without
// stack.Options.Damaged; one that is marked in use is another matter.
func (c *ImageCheck) Opens() bool {
	for _, by := range []fix{fixNever, fixHeld, fixHeader, fixLength, fixEntry} {
		if c.count[by] > 0 && !c.done[by] {
			return false
		}
	}
	return true
}

// Exit codes of a check, the same as qemu-img's; 1 is "could not check".
const (
	ExitClean   = 0
	ExitCorrupt = 2
	ExitLeaks   = 3
)

// ExitCode is the verdict in one number. What was repaired doesn't count,
// unless part of the disk is lost.
func (r *CheckReport) ExitCode() int {
	code := ExitClean
	if len(r.Stack) > 0 {
		return ExitCorrupt
	}
	for _, c := range r.Images {
		switch {
		case c.left > 0 || c.LostBytes > 0:
			return ExitCorrupt
		case c.Leaks > 0 && c.Repaired < c.Corruptions+c.Leaks:
			code = ExitLeaks
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
	return CheckOn(refs, o, storage.OpenStill)
}

// CheckOn is Check for images that are opened by other means than open(2).
func CheckOn(refs []ImageRef, o CheckOptions, open storage.Opener) (*CheckReport, error) {
	if err := chain.Count(refs); err != nil {
		return nil, err
	}
	r := &CheckReport{}
	// What is given is taken for the whole stack, unless it is known better.
	over := o.Repair && FindParentGap(refs) != nil
	for level, ref := range refs {
		run := func(repair bool) (*ImageCheck, error) {
			c := &ImageCheck{File: ref.Path, over: over || level > 0, allow: o.Allow}
			return c, c.check(ref, open, repair)
		}
		c, err := run(false)
		if err == nil && o.Repair && c.repairable() {
			// Again under the exclusive lock: what was seen may be old.
			c, err = run(true)
		}
		if err != nil {
			return nil, err
		}
		r.Images = append(r.Images, c)
	}
	r.checkStack(refs)
	return r, nil
}

// checkStack says whether the images lie over one another.
func (r *CheckReport) checkStack(refs []ImageRef) {
	if len(refs) < 2 {
		return
	}
	var deltas []*format.Delta
	for level, c := range r.Images {
		if c.hdr == nil {
			return // has its finding already
		}
		d := &format.Delta{Ref: refs[level], Header: *c.hdr, Level: level, Size: int64(c.hdr.Sectors) * SectorSize}
		deltas = append(deltas, d)
	}
	_, misfit := chain.Fit(deltas, false)
	for _, err := range []error{chain.Distinct(refs), misfit} {
		var fe *FormatError
		if errors.As(err, &fe) {
			r.Stack = append(r.Stack, Finding{Kind: FindingGeometry, File: fe.File, Offset: fe.Offset, Message: fe.Error()})
		}
	}
}

// check checks one file, and with repair mends it under the same lock.
func (c *ImageCheck) check(ref ImageRef, open storage.Opener, repair bool) error {
	d, err := format.Open(ref, open, repair, true, format.Tolerance{Damaged: true})
	var fe *FormatError
	if errors.As(err, &fe) && errors.Is(err, ErrCorrupt) {
		c.found(FindingHeader, fixNever, fe)
		return nil
	}
	if err != nil {
		return err
	}
	defer d.File.Close()
	c.hdr, c.Format, c.Clusters = &d.Header, d.Format(), d.Header.Clusters()
	if ref.Raw {
		return nil
	}
	if err := c.examine(d); err != nil {
		return err
	}
	c.Lost, c.LostBytes = c.lost.List, c.lost.Bytes
	if repair && c.repairable() {
		return c.repair(d)
	}
	return nil
}

func (c *ImageCheck) found(kind string, by fix, e *FormatError) *Finding {
	c.count[by]++
	if kind != FindingLeak {
		c.Corruptions++
		c.left++
	}
	if !c.room() {
		return new(Finding)
	}
	c.Findings = append(c.Findings, Finding{Kind: kind, File: e.File, Offset: e.Offset, Message: e.Error(), fix: by})
	return &c.Findings[len(c.Findings)-1]
}

// room says whether one more finding is listed.
func (c *ImageCheck) room() bool { return len(c.Findings) < maxFindings }

// examine makes the findings.
func (c *ImageCheck) examine(d *format.Delta) error {
	h := &d.Header
	c.checkHeader(d)
	used, err := d.ScanBAT(func(uint64, uint64) { c.Allocated++ }, func(i uint64, raw uint32, p format.Problem) error {
		c.checkEntry(d, i, raw, p)
		return nil
	})
	if err != nil {
		return err
	}
	c.end = int64(h.DataStart()) * SectorSize
	count := uint64(0)
	for pos := range used.All() {
		c.end = int64(h.SectorAt(pos+1)) * SectorSize
		c.Free += pos - count // for now the gaps up to here
		count = pos + 1
	}
	if err := c.checkExtension(d, used); err != nil {
		return err
	}
	if c.LeakBytes = d.Size - c.end; c.LeakBytes > 0 {
		c.Leaks = uint64((c.LeakBytes-1)/h.ClusterSize()) + 1
		e := &FormatError{File: c.File, Offset: c.end, What: "end of the file", Class: ErrCorrupt,
			Found: fmt.Sprintf("%d bytes that nothing refers to", c.LeakBytes), Want: "none"}
		if c.badEntries > 0 {
			e.Want += "; this repair leaves them, as they may be what the bad entries meant, but the next one or the next writer gives them up"
		}
		c.found(FindingLeak, fixLeak, e)
	}
	c.LeakBytes = max(c.LeakBytes, 0)
	return nil
}

func (c *ImageCheck) checkHeader(d *format.Delta) {
	for _, f := range d.Flaws {
		if f.Offset == 44 {
			c.InUse = true
			c.found(FindingHeader, fixInUse, f)
		}
	}
	if !c.InUse && d.Header.InUse == format.InUseDirty {
		c.InUse = true
		c.found(FindingInUse, fixInUse, &FormatError{File: c.File, Offset: 44, What: "in_use", Found: "the image was not closed cleanly", Want: "0", Class: ErrInUse})
	}
	g := d.Guess
	if g == nil {
		return
	}
	c.Guess = g.String()
	by, needs := fixNever, ""
	if g.Proven {
		needs = AllowDataOffset
		if c.allow.DataOffset {
			by = fixHeader
		}
	}
	f := c.found(FindingHeader, by, g.Flaw)
	f.Needs = needs
	f.Message = c.Guess
}

// checkEntry judges a bad entry.
func (c *ImageCheck) checkEntry(d *format.Delta, i uint64, raw uint32, p format.Problem) {
	cluster := d.Header.ClusterSize()
	start := int64(i) * cluster
	e := &FormatError{File: c.File}
	if c.room() { // there may be hundreds of millions
		e = d.BadEntry(i, raw, p)
	}
	needed := min(cluster, int64(d.Header.Sectors)*SectorSize-start)
	switch p {
	case format.EntryCut:
		have := d.Present(int64(d.Header.SectorOf(raw)), needed)
		c.lost.Add(start+have, needed-have)
		c.Allocated++
		c.found(FindingBeyondFile, fixLength, e)
	case format.EntryBeyondFile:
		c.badEntries++
		c.lost.Add(start, needed)
		by := fixEntry
		if c.over && !c.allow.OlderData {
			by = fixHeld
		}
		if by == fixHeld && c.room() {
			e.Want += fmt.Sprintf("; without the entry, bytes %v of the disk would be older data of the image below", DiskRange{Start: start, Length: needed})
		}
		f := c.found(FindingBeyondFile, by, e)
		if c.over {
			f.Needs = AllowOlderData
		}
		c.toClear(i, by)
	case format.EntryBeyondDisk:
		c.badEntries++
		by, holds := fixEntry, d.HoldsCluster(d.Header.SectorOf(raw))
		if holds && !c.allow.BeyondDisk {
			by = fixHeld
		}
		if by == fixHeld && c.room() {
			e.Want += "; the file has that cluster, and the size of the disk may be what is wrong"
		}
		f := c.found(FindingBeyondDisk, by, e)
		if holds {
			f.Needs = AllowBeyondDisk
		}
		c.toClear(i, by)
	default:
		c.badEntries++
		c.found(entryFindings[p], fixNever, e)
	}
}

func (c *ImageCheck) toClear(i uint64, by fix) {
	switch {
	case by != fixEntry:
	case len(c.clear) < maxClear:
		c.clear = append(c.clear, i)
	default:
		c.more = true
	}
}
