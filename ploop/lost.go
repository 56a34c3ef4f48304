package ploop

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
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
//
// Of syncs at the same time one may fail and lose data, and another succeed and
// end first. What comes into the index waits for all of them (syncs.go). A
// flush doesn't: where the storage tells only one of two flushes at the same
// time that data was lost, the other is acknowledged.
type lostIndex struct {
	sync.Mutex
	recent  map[int64]uint64   // sector, and indexSeq when it was last written
	sectors map[int64]struct{} // those that are lost
	n       atomic.Int64       // how many; for looking without the lock
}

// maxRecent is how many sectors are kept before the durable ones are dropped.
const maxRecent = 1024

// written notes that sectors of the BAT were written, or perhaps were (not ok:
// the write failed), and publishes what they say. gen is syncFailed from before
// the write: a sync that failed meanwhile may have lost this write as well.
func (x *index) written(s *Stack, sectors []int64, gen uint64, ok bool, publish func()) {
	l := &x.lost
	l.Lock()
	defer l.Unlock()
	if l.recent == nil {
		l.recent, l.sectors = map[int64]uint64{}, map[int64]struct{}{}
	}
	if synced := s.synced.Load(); len(l.recent) > maxRecent {
		maps.DeleteFunc(l.recent, func(_ int64, seq uint64) bool { return seq <= synced })
	}
	// After the write, so that a flush that begins now counts it, and before
	// the entries can be seen, so that nobody takes them for durable.
	seq := s.indexSeq.Add(1)
	for _, at := range sectors {
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
	for _, at := range sectors {
		x.mark(s, at)
	}
}

// mark brings the marks of a sector's entries in line. The caller holds x.lost.
func (x *index) mark(s *Stack, at int64) {
	_, lost := x.lost.sectors[at]
	first := uint64(max(at-headerSize, 0)) / batEntrySize
	end := min(uint64(at+SectorSize-headerSize)/batEntrySize, s.clusters)
	for i := first; i < end; i++ {
		if e := s.table.load(i); lost && !e.lost() {
			s.table.setLost(i)
		} else if !lost && e.lost() {
			s.table.unsetLost(i)
		}
	}
}

// lose notes that a sync failed.
func (x *index) lose(s *Stack) {
	l := &x.lost
	l.Lock()
	defer l.Unlock()
	l.n.Add(1) // before the count, for those who look at both without the lock
	x.syncFailed.Add(1)
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
	for i := range s.clusters {
		if s.inTop(s.table.load(i)) {
			l.sectors[sectorOfEntry(i)] = struct{}{}
		}
	}
	for at := range l.sectors {
		x.mark(s, at)
	}
	l.n.Store(int64(len(l.sectors)))
}

// restore writes a lost sector anew. Only the leader calls it, or Close.
func (x *index) restore(s *Stack, at int64) error {
	x.lost.Lock()
	_, lost := x.lost.sectors[at]
	x.lost.Unlock()
	if !lost {
		return nil
	}
	if err := s.beginStructure(); err != nil {
		return err
	}
	defer s.endStructure()
	if err := s.intact(); err != nil {
		return err
	}
	gen := x.syncFailed.Load()
	b := AlignedBuffer(SectorSize)
	x.fill(s, b, at, nil)
	if _, err := s.top.file.WriteAt(b, at); err != nil {
		return s.top.ioError("write index", at, err)
	}
	x.written(s, []int64{at}, gen, true, func() {})
	return nil
}

func (x *index) restoreAll(s *Stack) error {
	x.lost.Lock()
	sectors := slices.Sorted(maps.Keys(x.lost.sectors))
	x.lost.Unlock()
	for _, at := range sectors {
		if err := x.restore(s, at); err != nil {
			return err
		}
	}
	return nil
}
