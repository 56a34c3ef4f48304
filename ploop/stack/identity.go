package stack

import (
	"fmt"
	"maps"

	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/table"
)

// knowledge is what a stack knows of its top's index beyond the table.
type knowledge struct {
	unsynced map[int64]struct{} // sectors of the BAT that aren't known durable
	doubt    map[uint64]indexOp // by cluster: changes of which nobody knows whether the file has them
}

func (s *Stack) knowledge() knowledge {
	k := knowledge{unsynced: map[int64]struct{}{}, doubt: map[uint64]indexOp{}}
	l := &s.index.lost
	l.Lock()
	defer l.Unlock()
	synced := s.synced.Load()
	for at, seq := range l.recent {
		if seq > synced {
			k.unsynced[at] = struct{}{}
		}
	}
	maps.Copy(k.unsynced, l.sectors)
	for at, ops := range s.index.doubt {
		k.unsynced[at] = struct{}{}
		for _, op := range ops {
			k.doubt[op.cluster] = op
		}
	}
	return k
}

// sameHead wants the header of d to be that of was, continued, and in_use as
// it can be. For the top of a writable stack it may be set, as we left it, or
// clear, as in a copy that was checked.
func (n *successor) sameHead(was, d *delta) error {
	if d.Ref.Raw != was.Ref.Raw {
		return d.Diverged(-1, "format", d.Format(), was.Format())
	}
	if d.Ref.Raw {
		return nil // OpenKnown has seen that it is no shorter
	}
	h, k := &d.Header, &was.Header
	for _, f := range []struct {
		off         int64
		what        string
		found, want uint64
	}{
		{0, "version", uint64(h.Version), uint64(k.Version)},
		{28, "cluster size", uint64(h.ClusterSectors), uint64(k.ClusterSectors)},
		{32, "number of BAT entries", uint64(h.BATEntries), uint64(k.BATEntries)},
		{36, "disk size", h.Sectors, k.Sectors},
		{48, "data offset", h.DataStart(), k.DataStart()},
	} {
		if f.found != f.want {
			return d.Diverged(f.off, f.what, f.found, f.want)
		}
	}
	if h.InUse == format.InUseDirty && k.InUse != format.InUseDirty {
		return d.Diverged(44, "in_use", "the image is open for writing, or was not closed cleanly", "0, as before")
	}
	return nil
}

// readBAT reads a level's index into a table of its own.
func (n *successor) readBAT(d *delta) (*table.Table, error) {
	t, err := table.New(n.clusters)
	if err != nil {
		return nil, err
	}
	if _, _, err = d.ScanTable(t.Init); err != nil {
		t.Free()
		return nil, err
	}
	return t, nil
}

// difference counts what doesn't agree, and keeps the first.
type difference struct {
	n    int
	at   uint64
	f, w table.Entry
}

func (x *difference) add(i uint64, found, want table.Entry) {
	if x.n++; x.n == 1 {
		x.at, x.f, x.w = i, found, want
	}
}

func (x *difference) err(d *delta) error {
	if x.n == 0 {
		return nil
	}
	show := func(e table.Entry) string {
		if !e.Mapped() {
			return "0 (not here)"
		}
		v, _ := d.Header.EntryOf(uint64(e.Sector()))
		return fmt.Sprintf("%d (sector %d)", v, e.Sector())
	}
	return d.Diverged(format.HeaderSize+format.BATEntrySize*int64(x.at), fmt.Sprintf("BAT entry of cluster %d", x.at), show(x.f),
		fmt.Sprintf("%s, as the device knows it; it differs for %d clusters in all", show(x.w), x.n))
}

// compare fills the table by what s knows, where the images opened anew agree.
func (n *successor) compare(s *Stack, c Succession, known knowledge) error {
	var top *table.Table
	if d := n.top; c.Reopen[n.Top()] && !d.Ref.Raw {
		var err error
		if top, err = n.readBAT(d); err != nil {
			return err
		}
		defer top.Free()
	}
	if err := n.decide(s, top, known); err != nil {
		return err
	}
	for level, d := range n.deltas[:n.Top()] {
		if !c.Reopen[level] || d.Ref.Raw {
			continue
		}
		t, err := n.readBAT(d)
		if err != nil {
			return err
		}
		var diff difference
		for i := range n.clusters {
			want, found := n.table.Load(i), t.Load(i)
			if want.Mapped() && want.Level() > level {
				continue // hidden, and s never kept it
			}
			if !want.Mapped() || want.Level() < level {
				want = 0
			}
			if want != found {
				diff.add(i, found, want)
			}
		}
		t.Free()
		if err := diff.err(d); err != nil {
			return err
		}
	}
	return nil
}

// decide fills the table. For a top that was opened anew file is its index.
func (n *successor) decide(s *Stack, file *table.Table, known knowledge) error {
	var diff difference
	d := n.top
	var used format.Positions
	if file != nil {
		var err error
		if used, err = d.NewPositions(); err != nil {
			return err
		}
	}
	ofTop := func(e table.Entry) table.Entry {
		if n.inTop(e) {
			return e
		}
		return 0
	}
	for i := range n.clusters {
		e := s.table.Load(i) &^ (table.EntryBusy | table.EntryLost)
		if file == nil {
			n.place(i, e)
			continue
		}
		found := file.Load(i)
		if op, ok := known.doubt[i]; ok {
			// Either is right, so the file decides; what is neither is older.
			e = op.from
			if found == ofTop(op.to) {
				e = op.to
			}
		}
		if want := ofTop(e); found != want {
			_, unsynced := known.unsynced[format.SectorOfEntry(i)]
			if want.Mapped() {
				raw, _ := d.Header.EntryOf(uint64(want.Sector()))
				_, inside := d.CheckEntry(i, raw)
				unsynced = unsynced && inside
			}
			if !unsynced {
				diff.add(i, found, want)
				continue
			}
		}
		if n.inTop(e) && !n.opts.Damaged {
			pos := d.Header.PositionOf(uint64(e.Sector()))
			if used.Has(pos) {
				return d.Diverged(format.HeaderSize+format.BATEntrySize*int64(i), fmt.Sprintf("BAT entry of cluster %d", i), fmt.Sprintf("sector %d, which another cluster has", e.Sector()), "a cluster of its own")
			}
			used.Add(pos)
		}
		n.place(i, e)
	}
	if file == nil {
		return nil
	}
	return diff.err(d)
}

// place puts an entry into a table that nobody else has yet.
func (n *successor) place(i uint64, e table.Entry) {
	if e.Mapped() {
		n.table.Init(i, e)
		if n.inTop(e) {
			n.allocated.Add(1)
		}
	}
}

// mergeAnew fills the table from the files. Only for a top that is shared
// memory knows better.
func (n *successor) mergeAnew(s *Stack, c Succession) error {
	for level, d := range n.deltas {
		switch {
		case d.Ref.Raw:
			if _, _, err := d.FillTable(n.table.Init, n.clusters); err != nil {
				return err
			}
		case level == n.Top() && !c.Reopen[level]:
			for i := range n.clusters {
				if e := s.table.Load(i) &^ (table.EntryBusy | table.EntryLost); n.inTop(e) {
					n.place(i, e)
				}
			}
		case level == n.Top():
			if _, _, err := d.ScanTable(n.place); err != nil {
				return err
			}
		default:
			if _, _, err := d.FillTable(n.table.Init, n.clusters); err != nil {
				return err
			}
		}
	}
	return nil
}
