package stack

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// lostIndex remembers which sectors of the BAT aren't known to be durable, for
// when a sync fails.
//
// A failed sync may have lost, for good, what it was to make durable: reads
// go on to see it (in a cache), and a later sync succeeds without it. The
// user of the disk was told that the flush failed and expects no more of what
// was written before. But a write after it, to a cluster whose entry was
// lost, followed by a flush that succeeds, has to last. So the entries of
// lost sectors are marked, which sends writes the slow way, and there the
// sector is written anew first. Reads are not concerned. A write that was
// told its place before the sync failed, and ends after it, is the reason why
// Flush writes all that is lost anew.
type lostIndex struct {
	sync.Mutex
	recent  map[int64]uint64   // sector, and indexSeq when it was last written
	prune   int                // how many of them are looked through for durable ones
	visits  int                // of recent's members by that, in all
	sectors map[int64]struct{} // those that are lost
	n       atomic.Int64       // how many; for looking without the lock
	gone    bool               // the table was given back
}

// minPrune is how many sectors are kept at least before the durable ones are
// dropped. Those that aren't may be all the BAT has, so each time twice as many
// as were left may come before the next look: that is linear in what is written.
const minPrune = 1024

// written records that n bytes of the BAT were written, whole sectors, or perhaps were (not ok:
// the write failed), and publishes what they say. gen is syncFailed from before
// the write: a sync that failed meanwhile may have lost this write as well.
func (x *index) written(s *Stack, from, n int64, gen uint64, ok bool, publish func()) {
	l := &x.lost
	l.Lock()
	defer l.Unlock()
	if l.recent == nil {
		l.recent, l.sectors = map[int64]uint64{}, map[int64]struct{}{}
	}
	if synced := s.synced.Load(); len(l.recent) > max(l.prune, minPrune) {
		l.visits += len(l.recent)
		maps.DeleteFunc(l.recent, func(_ int64, seq uint64) bool { return seq <= synced })
		l.prune = 2 * len(l.recent)
	}
	// After the write, so that a flush that begins now counts it, and before
	// the entries can be seen, so that nobody takes them for durable.
	seq := s.indexSeq.Add(1)
	for at := from; at < from+n; at += image.SectorSize {
		l.recent[at] = seq
		switch {
		case x.syncFailed.Load() != gen:
			l.sectors[at] = struct{}{}
		case ok:
			delete(l.sectors, at) // a failed write mends nothing
		}
	}
	l.n.Store(int64(len(l.sectors)))
	publish()
	for at := from; at < from+n; at += image.SectorSize {
		x.mark(s, at)
	}
}

// mark brings the marks of a sector's entries in line. The caller holds x.lost.
func (x *index) mark(s *Stack, at int64) {
	_, lost := x.lost.sectors[at]
	first := uint64(max(at-format.HeaderSize, 0)) / format.BATEntrySize
	end := min(uint64(at+image.SectorSize-format.HeaderSize)/format.BATEntrySize, s.clusters)
	for i := first; i < end; i++ {
		if e := s.table.Load(i); lost && !e.Lost() {
			s.table.SetLost(i)
		} else if !lost && e.Lost() {
			s.table.UnsetLost(i)
		}
	}
}

// lose records that a sync failed.
func (x *index) lose(s *Stack) {
	l := &x.lost
	l.Lock()
	defer l.Unlock()
	l.n.Add(1) // before the count, for those who look at both without the lock
	x.syncFailed.Add(1)
	if l.gone {
		return // a sync of a stack that has ended; a successor with the same top is told by itself
	}
	synced := s.synced.Load()
	for at, seq := range l.recent {
		if seq > synced {
			l.sectors[at] = struct{}{}
			x.mark(s, at)
		}
	}
	l.n.Store(int64(len(l.sectors)))
}

// distrust marks all of the index as lost. Nobody else has the stack yet.
func (x *index) distrust(s *Stack) {
	l := &x.lost
	l.Lock()
	defer l.Unlock()
	l.recent, l.sectors = map[int64]uint64{}, map[int64]struct{}{}
	last := int64(-1)
	for i := range s.clusters {
		if at := format.SectorOfEntry(i); at != last && s.inTop(s.table.Load(i)) {
			l.sectors[at] = struct{}{}
			last = at
		}
	}
	for at := range l.sectors {
		x.mark(s, at)
	}
	l.n.Store(int64(len(l.sectors)))
}

// restore writes adjacent sectors anew, if they are lost still. Only the leader
// calls it, or Close.
func (x *index) restore(s *Stack, sectors []int64) error {
	x.lost.Lock()
	lost := slices.ContainsFunc(sectors, func(at int64) bool { _, is := x.lost.sectors[at]; return is })
	x.lost.Unlock()
	if !lost {
		return nil
	}
	if err := s.life.beginStructure(); err != nil {
		return err
	}
	defer s.life.endStructure()
	if err := s.space.intact(s); err != nil {
		return err
	}
	gen := x.syncFailed.Load()
	b := storage.AlignedBuffer(len(sectors) * image.SectorSize)
	x.fill(s, b, sectors[0], nil)
	if _, err := s.top.File.WriteAt(b, sectors[0]); err != nil {
		return s.top.IOError("write index", sectors[0], err)
	}
	x.written(s, sectors[0], int64(len(b)), gen, true, func() {})
	return nil
}

func (x *index) restoreAll(s *Stack) error {
	x.lost.Lock()
	sectors := slices.Sorted(maps.Keys(x.lost.sectors))
	x.lost.Unlock()
	for len(sectors) > 0 {
		n := adjacent(sectors)
		if err := x.restore(s, sectors[:n]); err != nil {
			return err
		}
		sectors = sectors[n:]
	}
	return nil
}

// adjacent is how many of sectors, which are in order, are one write.
func adjacent(sectors []int64) int {
	n := 1
	for n < len(sectors) && sectors[n] == sectors[0]+int64(n)*image.SectorSize && n*image.SectorSize < storage.CopyChunk {
		n++
	}
	return n
}

// freeTable gives the memory of the table back. Nobody reads places in it any more, but a sync
// that hangs in old storage isn't counted as a transfer, and may end by a failure later.
func (s *Stack) freeTable() {
	l := &s.index.lost
	l.Lock()
	defer l.Unlock()
	l.gone = true
	s.table.Free()
}
