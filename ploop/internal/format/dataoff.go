package format

import (
	"fmt"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/table"
)

// Tolerance says what Open takes although it is wrong.
type Tolerance struct {
	Damaged bool // flaws of the header that can be made up for; see dataOffGuess
	OddRaw  bool // a raw file that ends within a sector, which reads as zeroes from there
}

// Guesses says, a line each, what of the header isn't taken as it stands.
func (d *Delta) Guesses() (lines []string) {
	for _, f := range d.Flaws {
		if f.Offset == 44 {
			lines = append(lines, fmt.Sprintf("%v: taken for an image that was not closed cleanly", f))
		}
	}
	if d.Guess != nil {
		lines = append(lines, d.Guess.String())
	}
	return lines
}

// DataOffGuess is where an image's data must begin, since the header can't be
// right about it. The format leaves little choice, and QEMU (10 and later)
// makes the same one: the first cluster behind the BAT. In version 1 the first
// sector behind it is as usual, and any other is possible.
type DataOffGuess struct {
	Flaw   *image.FormatError // what is wrong with the header's
	sector uint32
	good   uint64 // entries that point to clusters there
	bad    uint64 // and others
	Proven bool   // all are good, and there are some
}

// String is one line: what is wrong, what is guessed, and what speaks for it.
func (g *DataOffGuess) String() string {
	return fmt.Sprintf("%v; guessed: the data begins at sector %d, which %s", g.Flaw, g.sector, g.evidence())
}

func (g *DataOffGuess) evidence() string {
	switch {
	case g.good+g.bad == 0:
		return "no BAT entry confirms or denies"
	case g.bad == 0:
		return fmt.Sprintf("all %d BAT entries fit", g.good)
	}
	return fmt.Sprintf("%d of %d BAT entries fit", g.good, g.good+g.bad)
}

// tolerateHeader deals with flaws of the header that parseHeader lets pass.
func (d *Delta) tolerateHeader() error {
	d.Flaws = d.Header.flaws(d.Ref.Path)
	if len(d.Flaws) > 0 && !d.tolerate.Damaged {
		return d.Flaws[0]
	}
	var flaw *image.FormatError
	for _, f := range d.Flaws {
		if f.Offset == 44 {
			d.Header.InUse = InUseDirty // whoever wrote that didn't close it
		} else {
			flaw = f
		}
	}
	if !d.tolerate.Damaged {
		return nil
	}
	return d.guessDataOff(flaw)
}

// guessDataOff replaces the header's data_off in memory if it has a flaw, or if
// entries contradict it and all agree on another.
func (d *Delta) guessDataOff(flaw *image.FormatError) error {
	stored := d.Header.DataOff
	if flaw == nil {
		now, err := d.tryDataOff(stored)
		if err != nil || now.bad == 0 {
			return err
		}
	}
	candidates, err := d.dataOffCandidates()
	if err != nil {
		return err
	}
	var best *DataOffGuess
	for _, sector := range candidates {
		g, err := d.tryDataOff(sector)
		if err != nil {
			return err
		}
		if best == nil || g.bad < best.bad {
			best = g
		}
	}
	d.Header.DataOff = stored
	switch {
	case best == nil:
		if flaw != nil {
			return flaw
		}
		return nil
	case flaw == nil && (!best.Proven || best.sector == stored):
		return nil // entries are bad, and no other place explains them
	case flaw == nil:
		flaw = &image.FormatError{File: d.Ref.Path, Offset: 48, What: "data offset", Class: image.ErrCorrupt,
			Found: fmt.Sprintf("sector %d", stored), Want: fmt.Sprintf("%d, where the BAT's entries have it", best.sector)}
	}
	best.Flaw = flaw
	d.Guess, d.Header.DataOff = best, best.sector
	return nil
}

// dataOffCandidates are the places where the data may begin.
func (d *Delta) dataOffCandidates() ([]uint32, error) {
	h := &d.Header
	cluster := int64(h.ClusterSectors)
	behind := (h.BATEnd() + image.SectorSize - 1) / image.SectorSize
	places := []int64{(behind + cluster - 1) / cluster * cluster}
	if h.Version == 1 {
		// The entries, which are sectors, tell what they are aligned to.
		least := uint64(0)
		if err := d.rawEntries(func(_ uint64, raw uint32) error {
			if at := uint64(raw); at >= uint64(behind) && (least == 0 || at < least) {
				least = at
			}
			return nil
		}); err != nil {
			return nil, err
		}
		places = append(places, behind)
		if least != 0 {
			places = append(places, behind+(int64(least)-behind)%cluster)
		}
	}
	var fit []uint32
	for _, p := range places {
		if p <= 1<<32-1 {
			fit = append(fit, uint32(p))
		}
	}
	return fit, nil
}

// tryDataOff counts the entries that fit data beginning there. It leaves it in
// the header.
func (d *Delta) tryDataOff(sector uint32) (*DataOffGuess, error) {
	d.Header.DataOff = sector
	g := &DataOffGuess{sector: sector}
	_, err := d.ScanBAT(func(uint64, uint64) { g.good++ }, func(_ uint64, _ uint32, p Problem) error {
		if p == EntryCut { // it fits; what is short is the file
			g.good++
		} else {
			g.bad++
		}
		return nil
	})
	g.Proven = g.bad == 0 && g.good > 0
	return g, err
}

// ScanTable is ScanBAT for a table: of a tolerated image it gives the bad
// entries too. An entry may be given twice, the second time right. n counts
// the good ones.
func (d *Delta) ScanTable(put func(i uint64, e table.Entry)) (used Positions, n int64, err error) {
	good := func(i, sector uint64) {
		put(i, table.MakeEntry(d.Level, sector))
		n++
	}
	if !d.tolerate.Damaged {
		used, err = d.ScanBAT(good, d.refuse)
		return used, n, err
	}
	shared, err := d.NewPositions()
	if err != nil {
		return nil, 0, err
	}
	twice := false
	used, err = d.ScanBAT(good, func(i uint64, raw uint32, p Problem) error {
		sector := d.Header.SectorOf(raw)
		switch {
		case i >= d.Header.Clusters(): // nobody can ask for it
		case p == EntryDuplicate:
			twice = true
			shared.Add(d.Header.PositionOf(sector))
		case p == EntryCut:
			put(i, table.MakeEntry(d.Level, sector)|table.EntryBad)
		default:
			// No lower image may show through.
			put(i, table.MakeEntry(d.Level, uint64(table.EntrySector))|table.EntryBad)
		}
		return nil
	})
	if err != nil || !twice {
		return used, n, err
	}
	err = d.rawEntries(func(i uint64, raw uint32) error {
		sector := d.Header.SectorOf(raw)
		if i >= d.Header.Clusters() || !d.HoldsCluster(sector) || !shared.Has(d.Header.PositionOf(sector)) {
			return nil
		}
		e := table.MakeEntry(d.Level, sector) | table.EntryShared
		if p, ok := d.CheckEntry(i, raw); !ok && p == EntryCut {
			e |= table.EntryBad
		}
		put(i, e)
		return nil
	})
	return used, n, err
}

// ReadDamaged reads at in of cluster i, which isn't wholly in the file.
func (d *Delta) ReadDamaged(e table.Entry, i uint64, in int64, p []byte) error {
	if off := e.Sector()*image.SectorSize + in; off+int64(len(p)) <= d.Size {
		return d.Read(p, off)
	}
	return &image.FormatError{File: d.Ref.Path, Offset: HeaderSize + BATEntrySize*int64(i), Class: image.ErrDamaged,
		What: fmt.Sprintf("read at byte %d of the disk", int64(i)*d.Header.ClusterSize()+in), Found: "a bad BAT entry, or a cluster that the file has not all of"}
}

// FillTable gives the entries of a disk of so many clusters that the image has, as ScanTable
// does. A raw image has every cluster that its file reaches into.
func (d *Delta) FillTable(put func(i uint64, e table.Entry), clusters uint64) (used Positions, n int64, err error) {
	if !d.Ref.Raw {
		return d.ScanTable(put)
	}
	for i := range min(d.Header.Clusters(), clusters) {
		put(i, table.MakeEntry(d.Level, i*uint64(d.Header.ClusterSectors)))
	}
	return nil, 0, nil
}

// Present is how much of n bytes from a sector of the file on it has, in whole sectors.
func (d *Delta) Present(sector, n int64) int64 {
	return min(max(d.Size/image.SectorSize-sector, 0)*image.SectorSize, n)
}
