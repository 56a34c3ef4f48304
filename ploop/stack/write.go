package stack

import (
	"sync"

	"holdfast/internal/failpoint"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
	"holdfast/ploop/internal/table"
)

// copyPiece is how much of a cluster is copied up at once, in bytes, and bounds what a call of
// WriteAt or WriteZeroes takes of memory, whatever the cluster. One copy-up alone of 1 MiB took
// 5 ms on a disk in one piece, 7 ms in pieces of 256 KiB, and 17 ms in those of 64 KiB; many
// at the same time find the disk's bandwidth.
const copyPiece = 256 << 10

// copyBuffers are for copying up, off the requests' own memory.
var copyBuffers = sync.Pool{New: func() any { b := storage.AlignedBuffer(copyPiece); return &b }}

// pieces cuts a range of the disk at cluster borders.
func (s *Stack) pieces(off, n int64, do func(i uint64, in, n int64) error) error {
	if s.closed.Load() {
		return ErrClosed
	}
	if off < 0 || n < 0 || off > s.size-n || (off|n)%image.SectorSize != 0 {
		return ErrRange
	}
	for n > 0 {
		i := uint64(off / s.cluster)
		in := off % s.cluster
		k := min(n, s.cluster-in)
		if err := do(i, in, k); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// ReadAt reads len(p) bytes at off; both must be whole sectors of the disk.
func (s *Stack) ReadAt(p []byte, off int64) (int, error) {
	defer s.calls.end(s.calls.begin())
	done := 0
	err := s.pieces(off, int64(len(p)), func(i uint64, in, n int64) error {
		if err := s.readPiece(i, in, p[done:done+int(n)]); err != nil {
			return err
		}
		done += int(n)
		return nil
	})
	return done, err
}

func (s *Stack) readPiece(i uint64, in int64, p []byte) error {
	for {
		at := s.slow.locate(int64(i)*s.cluster+in, len(p), false)
		switch at.Where {
		case Zero:
			clear(p)
			return nil
		case Direct:
			err := s.deltas[at.Level].Read(p, at.Offset)
			s.slow.Leave(at.Token)
			return err
		}
		if e := s.table.Load(i); e.Bad() {
			return s.deltas[e.Level()].ReadDamaged(e, i, in, p)
		}
		// Busy: whoever changes it holds the lock, or failed and left it
		// for us to find out.
		if err := s.locks.Lock(i, s.life.over()); err != nil {
			return err
		}
		_, err := s.settled(i)
		s.locks.Unlock(i)
		if err != nil {
			return err
		}
	}
}

// settled gives a cluster's entry, whose lock the caller holds, after
// finding out what a failed change left in the file.
func (s *Stack) settled(i uint64) (table.Entry, error) {
	for {
		e := s.table.Load(i)
		if !e.Busy() && !e.Lost() {
			return e, nil
		}
		if err := s.index.resolve(s, i); err != nil {
			return 0, err
		}
	}
}

// WriteAt writes p at off; both must be whole sectors of the disk. When it
// returns, data and index are in the file, and a Flush makes them durable.
// Zeroes for a cluster that is stored nowhere allocate nothing.
func (s *Stack) WriteAt(p []byte, off int64) (int, error) {
	if s.readOnly {
		return 0, ErrReadOnly
	}
	defer s.calls.end(s.calls.begin())
	done := 0
	err := s.pieces(off, int64(len(p)), func(i uint64, in, n int64) error {
		if err := s.writePiece(i, in, p[done:done+int(n)]); err != nil {
			return err
		}
		done += int(n)
		return nil
	})
	return done, err
}

func (s *Stack) writePiece(i uint64, in int64, p []byte) error {
	if err := s.locks.Lock(i, s.life.over()); err != nil {
		return err
	}
	defer s.locks.Unlock(i)
	e, err := s.settled(i)
	if err != nil {
		return err
	}
	if s.bitmaps != nil {
		s.markDirty(int64(i)*s.cluster+in, int64(len(p)))
	}
	if e.Mapped() && e.Level() == s.Top() {
		return s.alone(i, in, int64(len(p)), func() error { return s.top.Write(p, e.Sector()*image.SectorSize+in) })
	}
	if !e.Mapped() && storage.AllZero(p) {
		return nil
	}
	return s.newCluster(i, e, in, p, int64(len(p)))
}

// alone changes n bytes at in of a cluster in its place, whose lock the caller holds. If these
// are not whole units of direct I/O, the change writes back what is beside them, and no fast
// transfer may write that meanwhile.
func (s *Stack) alone(i uint64, in, n int64, change func() error) error {
	if (in|n)&s.misfit == 0 {
		return change()
	}
	s.table.SetBusy(i)
	defer s.table.UnsetBusy(i)
	if err := s.grace.wait(s.life.over()); err != nil {
		return err
	}
	return change()
}

// allocation gives a cluster a place in the top.
type allocation struct {
	s       *Stack
	at      place
	off     int64 // of the place in the top's file
	e       table.Entry
	in, n   int64
	p       []byte // nil: zeroes
	op      [1]indexOp
	gen     uint64
	request indexRequest
	filled  chan error
}

var allocations = sync.Pool{New: func() any { return &allocation{filled: make(chan error, 1)} }}

// newCluster gives cluster i, whose lock the caller holds, a place in the top:
// its old content (nothing, or a lower delta's) with n bytes at in replaced by
// p; a nil p stands for zeroes.
func (s *Stack) newCluster(i uint64, e table.Entry, in int64, p []byte, n int64) error {
	at, err := s.space.allocate(s)
	if err != nil {
		return err
	}
	sector := s.top.Header.SectorAt(at.pos)
	a := allocations.Get().(*allocation)
	*a = allocation{s: s, at: at, off: int64(sector) * image.SectorSize, e: e, in: in, n: n, p: p, gen: s.index.syncFailed.Load(),
		op: [1]indexOp{{cluster: i, from: e, to: table.MakeEntry(s.Top(), sector)}}, request: indexRequest{turn: a.request.turn}, filled: a.filled}
	// Zeroes are what the cluster was before. What it had in a lower delta must not be missing.
	early := at.lasting && !e.Mapped()
	a.request.ops, a.request.gen, a.request.early = a.op[:], &a.gen, early
	left, attempted, err := a.do(early && !s.top.cached())
	if err != nil && !attempted {
		s.space.giveBack(at.pos)
	}
	if !left {
		a.s, a.p = nil, nil
		allocations.Put(a)
	}
	return err
}

// do writes data and entry. beside does so side by side, which saves half of the time where the
// storage takes its time for each: if the data can't be written the cluster has its place all the same,
// with zeroes or a part of the data in it.
func (a *allocation) do(beside bool) (left, attempted bool, err error) {
	if !beside {
		if err := a.fill(); err != nil {
			return false, false, err
		}
		failpoint.Hit("data-index")
		return a.s.index.commit(a.s, &a.request)
	}
	go func() { a.filled <- a.fill() }()
	left, attempted, err = a.s.index.commit(a.s, &a.request)
	if ferr := <-a.filled; ferr != nil {
		err = ferr
	}
	if err == nil && a.gen != a.s.index.syncFailed.Load() && !a.s.believing {
		err = a.s.lostBefore() // the data came before that sync, perhaps
	}
	return left, attempted, err
}

func (a *allocation) fill() error {
	return a.s.fillCluster(a.off, a.at.zero, a.e, a.in, a.p, a.n)
}

// fillCluster writes a whole cluster at off of the top's file, sparing what
// reads as zeroes already.
func (s *Stack) fillCluster(off int64, clean bool, e table.Entry, in int64, p []byte, n int64) error {
	if !e.Mapped() || n == s.cluster { // nothing to copy up
		if !clean && (p == nil || n < s.cluster) {
			if err := s.top.File.Zero(off, s.cluster, true); err != nil {
				return s.top.IOError("zero", off, err)
			}
		}
		if p == nil {
			return nil
		}
		return s.top.Write(p, off+in)
	}
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	for at := int64(0); at < s.cluster; {
		b := (*bp)[:min(copyPiece, s.cluster-at)]
		if at < in || at+int64(len(b)) > in+n { // not wholly replaced
			if err := s.deltas[e.Level()].Read(b, e.Sector()*image.SectorSize+at); err != nil {
				return err
			}
		}
		if lo, hi := max(at, in), min(at+int64(len(b)), in+n); lo < hi {
			if p == nil {
				clear(b[lo-at : hi-at])
			} else {
				copy(b[lo-at:hi-at], p[lo-in:])
			}
		}
		if !clean || !storage.AllZero(b) {
			if failpoint.Armed("cow") {
				s.top.Write(b[:len(b)/2/image.SectorSize*image.SectorSize], off+at)
				failpoint.Die("cow")
			}
			if err := s.top.Write(b, off+at); err != nil {
				return err
			}
		}
		at += int64(len(b))
	}
	return nil
}

// Flush makes everything acknowledged before the call durable.
func (s *Stack) Flush() error {
	defer s.calls.end(s.calls.begin())
	if s.closed.Load() {
		return ErrClosed
	}
	if s.readOnly {
		return nil
	}
	gen := s.index.syncFailed.Load()
	if s.index.lost.n.Load() != 0 {
		if err := s.index.restoreLost(s); err != nil {
			return err
		}
	}
	if err := s.space.intact(s); err != nil {
		return err
	}
	if err := s.sync(); err != nil {
		return err
	}
	if gen != s.index.syncFailed.Load() && !s.believing {
		return s.lostBefore()
	}
	return nil
}
