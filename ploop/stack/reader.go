package stack

import (
	"sync/atomic"

	"holdfast/ploop/image"
)

// Where is the answer of Reader.Locate.
type Where uint8

const (
	// Slow: this needs the blocking calls (a cluster to allocate or to copy
	// up, a range over two clusters, a change under way).
	Slow Where = iota
	// Zero: nothing is stored here; it reads as zeroes.
	Zero
	// Direct: transfer to or from the file, then call Leave.
	Direct
)

// Reader is one thread's fast way into a Stack. Its methods are for that
// thread alone; they neither lock nor allocate.
type Reader struct {
	s     *Stack
	count [2]struct { // see grace
		n atomic.Int64
		_ [56]byte // a cache line each
	}
}

// NewReader makes a Reader for the calling thread. It lives as long as the Stack.
func (s *Stack) NewReader() *Reader {
	r := &Reader{s: s}
	s.grace.add(r)
	return r
}

// Place is where a range of the disk lies.
type Place struct {
	Where  Where
	Level  int   // of the file, if Direct
	Offset int64 // in that file, in bytes
	Token  uint32
}

// Locate says where n bytes at off of the disk are. For Direct the caller
// transfers between its memory and the file and then calls Leave, whatever the
// outcome; until then no one reuses that place. write asks for a place that may
// be written.
func (r *Reader) Locate(off int64, n int, write bool) Place {
	if (off|int64(n))&r.s.misfit != 0 {
		return Place{} // less than direct I/O takes (storage/transfer.go)
	}
	at := r.locate(off, n, write)
	if at.Where == Direct && at.Level == 0 && at.Offset+int64(n) > r.s.baseEnd {
		// A raw base may end within a cluster; the rest reads as zeroes.
		r.Leave(at.Token)
		return Place{}
	}
	return at
}

func (r *Reader) locate(off int64, n int, write bool) Place {
	s := r.s
	i := uint64(off) / uint64(s.cluster)
	in := off - int64(i)*s.cluster
	if in+int64(n) > s.cluster || off+int64(n) > s.size || off < 0 {
		return Place{}
	}
	token := s.grace.enter(r)
	e := s.table.Load(i)
	switch {
	case e.Slow():
	case !e.Mapped():
		if !write {
			s.grace.leave(r, token)
			return Place{Where: Zero}
		}
	case !write || e.Level() == s.Top() && !s.readOnly && !e.Lost():
		if write && s.bitmaps != nil {
			s.markDirty(off, int64(n))
		}
		return Place{Direct, e.Level(), e.Sector()*image.SectorSize + in, token}
	}
	s.grace.leave(r, token)
	return Place{}
}

// Leave ends a Direct transfer.
func (r *Reader) Leave(token uint32) { r.s.grace.leave(r, token) }

// IndexDirty says that the index has changes which are in the file but not yet
// durable. While it hasn't, a write that is itself durable (RWF_DSYNC) to a
// Direct place satisfies FUA; otherwise the whole file must be synced.
func (s *Stack) IndexDirty() bool {
	// A failed sync in between, with a good one behind it, would make dirty
	// look clean.
	gen := s.index.syncFailed.Load()
	return s.index.lost.n.Load() != 0 || s.synced.Load() != s.indexSeq.Load() || s.index.syncFailed.Load() != gen
}

// markDirty sets the bits of a range in every dirty bitmap.
func (s *Stack) markDirty(off, n int64) {
	first, last := uint64(off)/image.SectorSize, uint64(off+n-1)/image.SectorSize
	for _, b := range s.bitmaps {
		for g := first / uint64(b.Granularity); g <= last/uint64(b.Granularity); g++ {
			w, bit := &b.Bits[g/64], uint64(1)<<(g%64)
			// Most writes find their bit set; a plain look spares the
			// cache line's exclusive ownership.
			if atomic.LoadUint64(w)&bit == 0 {
				atomic.OrUint64(w, bit)
			}
		}
	}
}
