package ploop

import (
	"fmt"
)

// damageTolerance says what openTolerant takes although it is wrong.
type damageTolerance struct {
	damaged bool // flaws of the header that can be made up for; see dataOffGuess
	oddRaw  bool // a raw file that ends within a sector, which reads as zeroes from there
}

// guesses says, a line each, what of the header isn't taken as it stands.
func (d *Delta) guesses() (lines []string) {
	for _, f := range d.flaws {
		if f.Offset == 44 {
			lines = append(lines, fmt.Sprintf("%v: taken for an image that was not closed cleanly", f))
		}
	}
	if d.guess != nil {
		lines = append(lines, d.guess.String())
	}
	return lines
}

// dataOffGuess is where an image's data must begin, since the header can't be
// right about it. The format leaves little choice, and QEMU (10 and later)
// makes the same one: the first cluster behind the BAT. In version 1 the first
// sector behind it is as usual, and any other is possible.
type dataOffGuess struct {
	flaw   *FormatError // what is wrong with the header's
	sector uint32
	good   uint64 // entries that point to clusters there
	bad    uint64 // and others
	proven bool   // all are good, and there are some
}

func (g *dataOffGuess) String() string {
	return fmt.Sprintf("%v; guessed: the data begins at sector %d, which %s", g.flaw, g.sector, g.evidence())
}

func (g *dataOffGuess) evidence() string {
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
	d.flaws = d.hdr.flaws(d.ref.Path)
	if len(d.flaws) > 0 && !d.tolerate.damaged {
		return d.flaws[0]
	}
	var flaw *FormatError
	for _, f := range d.flaws {
		if f.Offset == 44 {
			d.hdr.InUse = inUseDirty // whoever wrote that didn't close it
		} else {
			flaw = f
		}
	}
	if !d.tolerate.damaged {
		return nil
	}
	return d.guessDataOff(flaw)
}

// guessDataOff replaces the header's data_off in memory if it has a flaw, or if
// entries contradict it and all agree on another.
func (d *Delta) guessDataOff(flaw *FormatError) error {
	stored := d.hdr.DataOff
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
	var best *dataOffGuess
	for _, sector := range candidates {
		g, err := d.tryDataOff(sector)
		if err != nil {
			return err
		}
		if best == nil || g.bad < best.bad {
			best = g
		}
	}
	d.hdr.DataOff = stored
	switch {
	case best == nil:
		if flaw != nil {
			return flaw
		}
		return nil
	case flaw == nil && (!best.proven || best.sector == stored):
		return nil // entries are bad, and no other place explains them
	case flaw == nil:
		flaw = &FormatError{File: d.ref.Path, Offset: 48, What: "data offset", Class: ErrCorrupt,
			Found: fmt.Sprintf("sector %d", stored), Want: fmt.Sprintf("%d, where the BAT's entries have it", best.sector)}
	}
	best.flaw = flaw
	d.guess, d.hdr.DataOff = best, best.sector
	return nil
}

// dataOffCandidates are the places where the data may begin.
func (d *Delta) dataOffCandidates() ([]uint32, error) {
	h := &d.hdr
	cluster := int64(h.ClusterSectors)
	behind := (h.batEnd() + SectorSize - 1) / SectorSize
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
func (d *Delta) tryDataOff(sector uint32) (*dataOffGuess, error) {
	d.hdr.DataOff = sector
	g := &dataOffGuess{sector: sector}
	_, err := d.scanBAT(func(uint64, uint64) { g.good++ }, func(_ uint64, _ uint32, p batProblem) error {
		if p == entryCut { // it fits; what is short is the file
			g.good++
		} else {
			g.bad++
		}
		return nil
	})
	g.proven = g.bad == 0 && g.good > 0
	return g, err
}

// scanTable is scanBAT for a table: of a tolerated image it gives the bad
// entries too. An entry may be given twice, the second time right. n counts
// the good ones.
func (d *Delta) scanTable(put func(i uint64, e entry)) (used positions, n int64, err error) {
	good := func(i, sector uint64) {
		put(i, makeEntry(d.level, sector))
		n++
	}
	if !d.tolerate.damaged {
		used, err = d.scanBAT(good, d.refuse)
		return used, n, err
	}
	shared, err := d.newPositions()
	if err != nil {
		return nil, 0, err
	}
	twice := false
	used, err = d.scanBAT(good, func(i uint64, raw uint32, p batProblem) error {
		sector := d.hdr.sectorOf(raw)
		switch {
		case i >= d.hdr.Clusters(): // nobody can ask for it
		case p == entryDuplicate:
			twice = true
			shared.add(d.hdr.positionOf(sector))
		case p == entryCut:
			put(i, makeEntry(d.level, sector)|entryBad)
		default:
			// No lower image may show through.
			put(i, makeEntry(d.level, uint64(entrySector))|entryBad)
		}
		return nil
	})
	if err != nil || !twice {
		return used, n, err
	}
	err = d.rawEntries(func(i uint64, raw uint32) error {
		sector := d.hdr.sectorOf(raw)
		if i >= d.hdr.Clusters() || !d.holdsCluster(sector) || !shared.has(d.hdr.positionOf(sector)) {
			return nil
		}
		e := makeEntry(d.level, sector) | entryShared
		if p, ok := d.checkEntry(i, raw); !ok && p == entryCut {
			e |= entryBad
		}
		put(i, e)
		return nil
	})
	return used, n, err
}

// readDamaged reads at in of cluster i, which isn't wholly in the file.
func (d *Delta) readDamaged(e entry, i uint64, in int64, p []byte) error {
	if off := e.sector()*SectorSize + in; off+int64(len(p)) <= d.size {
		return d.read(p, off)
	}
	return &FormatError{File: d.ref.Path, Offset: headerSize + batEntrySize*int64(i), Class: ErrDamaged,
		What: fmt.Sprintf("read at byte %d of the disk", int64(i)*d.hdr.ClusterSize()+in), Found: "a bad BAT entry, or a cluster that the file has not all of"}
}

// fillTable gives the entries of a disk of so many clusters that the image has, as scanTable
// does. A raw image has every cluster that its file reaches into.
func (d *Delta) fillTable(put func(i uint64, e entry), clusters uint64) (used positions, n int64, err error) {
	if !d.ref.Raw {
		return d.scanTable(put)
	}
	for i := range min(d.hdr.Clusters(), clusters) {
		put(i, makeEntry(d.level, i*uint64(d.hdr.ClusterSectors)))
	}
	return nil, 0, nil
}

// present is how much of n bytes from a sector of the file on it has, in whole sectors.
func (d *Delta) present(sector, n int64) int64 {
	return min(max(d.size/SectorSize-sector, 0)*SectorSize, n)
}
