package stack

import (
	"holdfast/internal/failpoint"
	"holdfast/ploop/image"
)

// Discard tells that n bytes at off are no longer wanted. With one delta, whole
// clusters go back to the image and read as zeroes; of the rest, what lies in
// the top goes back to its storage in whole blocks, and reads as zeroes or as it
// did. What a lower delta holds stays as it is. It is a hint: where the storage can't
// take space back it does nothing, and never writes zeroes for it.
func (s *Stack) Discard(off, n int64) error {
	return s.zeroRange(off, n, false, false)
}

// WriteZeroes makes n bytes at off read as zeroes. keep asks that the space
// stays allocated where it is.
func (s *Stack) WriteZeroes(off, n int64, keep bool) error {
	return s.zeroRange(off, n, true, keep)
}

// unmapBatch bounds the locks held at once by one discard.
const unmapBatch = 256

func (s *Stack) zeroRange(off, n int64, must, keep bool) error {
	if s.readOnly {
		return ErrReadOnly
	}
	defer s.calls.end(s.calls.begin())
	if !must && s.DiscardUnit() == 0 {
		return s.pieces(off, n, func(uint64, int64, int64) error { return nil })
	}
	var whole []uint64
	err := s.pieces(off, n, func(i uint64, in, k int64) error {
		// The disk's last cluster is whole where the disk ends.
		if !keep && s.Unmaps() && in == 0 && (k == s.cluster || off+n == s.size && int64(i)*s.cluster+k == s.size) {
			if e := s.table.Load(i); !e.Mapped() && !e.Busy() {
				return nil
			}
			if whole = append(whole, i); len(whole) == unmapBatch {
				err := s.unmap(whole)
				whole = whole[:0]
				return err
			}
			return nil
		}
		return s.zeroPiece(i, in, k, must, keep)
	})
	if err != nil {
		return err
	}
	return s.unmap(whole)
}

// zeroPiece zeroes a part of a cluster, or a whole one that keeps its place.
func (s *Stack) zeroPiece(i uint64, in, n int64, must, keep bool) error {
	if err := s.locks.Lock(i, s.life.over()); err != nil {
		return err
	}
	defer s.locks.Unlock(i)
	e, err := s.settled(i)
	if err != nil {
		return err
	}
	if !e.Mapped() || !must && e.Level() != s.Top() {
		return nil
	}
	if s.bitmaps != nil {
		s.markDirty(int64(i)*s.cluster+in, n)
	}
	if e.Level() == s.Top() {
		off := e.Sector()*image.SectorSize + in
		if !must {
			s.hint(off, n)
			return nil
		}
		return s.alone(i, in, n, func() error { return s.top.IOError("zero", off, s.top.File.Zero(off, n, keep)) })
	}
	return s.newCluster(i, e, in, nil, n)
}

// unmap takes whole clusters out of the index, in rising order.
//
// A place may be given to another cluster only when no fast transfer can still
// reach it (the grace period) and when the cleared entry is durable: otherwise
// a power cut could leave two clusters with one place.
func (s *Stack) unmap(clusters []uint64) (err error) {
	var ops []indexOp
	giveUp := func(err error) error {
		for _, op := range ops {
			s.table.UnsetBusy(op.cluster)
		}
		return err
	}
	for _, i := range clusters {
		if err := s.locks.Lock(i, s.life.over()); err != nil {
			return giveUp(err)
		}
		defer s.locks.Unlock(i)
		e, err := s.settled(i)
		if err != nil {
			return giveUp(err)
		}
		if !e.Mapped() {
			continue
		}
		if s.bitmaps != nil {
			off := int64(i) * s.cluster
			s.markDirty(off, min(s.cluster, s.size-off))
		}
		s.table.SetBusy(i)
		ops = append(ops, indexOp{cluster: i, from: e})
	}
	if len(ops) == 0 {
		return nil
	}
	if err := s.grace.wait(s.life.over()); err != nil {
		return giveUp(err)
	}
	gen := s.index.syncFailed.Load()
	if _, _, err := s.index.commit(s, &indexRequest{ops: ops}); err != nil {
		return err
	}
	failpoint.Hit("discard-index")
	if !s.noOrder {
		if err := s.sync(); err != nil {
			return err // the places stay unused until the next open
		}
		if gen != s.index.syncFailed.Load() {
			return nil // as above: another sync failed, and with it perhaps this change
		}
	}
	if !s.life.predecessorsIdle() || s.life.beginStructure() != nil {
		return nil // somebody may still write to the places
	}
	defer s.life.endStructure()
	h := &s.top.Header
	for _, op := range ops {
		off := op.from.Sector() * image.SectorSize
		failpoint.Hit("discard-punch")
		s.hint(off, s.cluster)
		s.space.giveBack(h.PositionOf(uint64(op.from.Sector())))
	}
	return nil
}

// hint gives a range of the top's file back to its storage. That may fail.
func (s *Stack) hint(off, n int64) {
	if err := s.top.File.Discard(off, n); err != nil && !s.hintFailed.Swap(true) {
		s.log("%v; the space stays in the file, and so does that of later ones that fail", s.top.IOError("discard", off, err))
	}
}

// DiscardUnit is what Discard gives back at least, in bytes; 0: it does nothing.
func (s *Stack) DiscardUnit() int64 {
	u := s.top.File.DiscardUnit()
	if u != 0 && s.Unmaps() {
		return s.cluster
	}
	return u
}
