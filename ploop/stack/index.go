package stack

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
	"holdfast/ploop/internal/table"
)

// index writes the top's BAT. Callers queue their changes; one of them, the
// leader, makes everything that is queued durable and visible at once, and
// then hands the lead to the next. So a burst of allocations costs one sync,
// and changes of the index never overlap.
type index struct {
	mu    sync.Mutex
	queue []*indexRequest
	led   bool
	spare []*indexRequest // the queue before, for its memory

	// The leader's, for their memory.
	ops    []*indexOp
	writes []indexRun

	// syncFailed counts failed syncs of the top. A failed sync may have lost
	// data of a write that has not reached the index yet, and a later sync
	// that succeeds would not tell, so those writes fail.
	syncFailed atomic.Uint64

	lost lostIndex

	// doubt holds, by sector of the BAT, changes whose write failed and that
	// couldn't be read back. Their entries stay busy. Only the leader changes
	// it, under lost.
	doubt map[int64][]indexOp
}

// indexOp moves one cluster, whose lock its request's caller holds.
type indexOp struct {
	cluster  uint64
	from, to table.Entry // to 0: take it out
	// attempted says that the file may have the new entry, so that the new
	// place must not be reused even after an error.
	attempted bool
	err       error
}

type indexRequest struct {
	ops     []indexOp
	gen     *uint64 // data was written under this count of syncFailed; nil: no data
	early   bool    // the data may become durable after the entry: its place reads as zeroes until then
	cluster uint64  // without ops: settle what is in doubt about this one
	all     bool    // without ops: write every lost sector anew instead
	err     error
	turn    chan bool // told once: true to lead, false when done
	left    bool      // under index.mu: whoever asked has gone, and its lock with it
}

// commit brings a request's ops into the file and, that done, into the table. With gen it
// first syncs the data that the new entries point to, unless they are early. After an error
// attempted says that the file may have the new entries, now or later, so that their
// places must not be reused. With left the request is the leader's, and isn't used again.
func (x *index) commit(s *Stack, r *indexRequest) (left, attempted bool, err error) {
	left, err = x.run(s, r)
	return left, left || slices.ContainsFunc(r.ops, func(op indexOp) bool { return op.attempted }), err
}

// resolve reads back what a failed change of cluster i, whose lock the caller
// holds, left in the file.
func (x *index) resolve(s *Stack, i uint64) error {
	_, err := x.run(s, &indexRequest{cluster: i})
	return err
}

// restoreLost writes anew what a failed sync may have lost.
func (x *index) restoreLost(s *Stack) error {
	_, err := x.run(s, &indexRequest{all: true})
	return err
}

// run does a request in its turn. When the stack is superseded before, it is
// ErrSuperseded; left then says that a leader has the request, and may yet do
// it.
func (x *index) run(s *Stack, r *indexRequest) (left bool, err error) {
	if r.turn == nil {
		r.turn = make(chan bool, 1)
	}
	x.mu.Lock()
	x.queue = append(x.queue, r)
	if x.led {
		x.mu.Unlock()
		select {
		case lead := <-r.turn:
			if !lead {
				return false, r.err
			}
		case <-s.life.over():
			return x.leave(s, r)
		}
		x.mu.Lock()
	}
	x.led = true
	batch := x.queue
	x.queue, x.spare = x.spare, nil
	x.mu.Unlock()

	x.process(s, batch)

	x.mu.Lock()
	for _, other := range batch {
		if other != r {
			other.turn <- false
		}
	}
	clear(batch)
	x.spare = batch[:0]
	x.pass()
	x.mu.Unlock()
	return false, r.err
}

// pass has the next one lead. The caller holds x.mu.
func (x *index) pass() {
	if len(x.queue) > 0 {
		x.queue[0].turn <- true
	} else {
		x.led = false
	}
}

// leave takes a request back whose turn may never come. What a leader has
// already, it may have brought into the file and will publish: until it has,
// the clusters are busy, and whoever comes to them waits for it by resolve.
func (x *index) leave(s *Stack, r *indexRequest) (left bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	i := slices.Index(x.queue, r)
	select {
	case lead := <-r.turn:
		if !lead {
			return false, r.err // just in time
		}
		x.queue = slices.Delete(x.queue, i, i+1)
		x.pass()
	default:
		if i < 0 {
			r.left = true
			for _, op := range r.ops {
				s.table.SetBusy(op.cluster)
			}
			s.space.frozen.Store(true) // their places may come to nothing
			return true, ErrSuperseded
		}
		x.queue = slices.Delete(x.queue, i, i+1)
	}
	for _, op := range r.ops {
		s.table.UnsetBusy(op.cluster) // not touched
	}
	return false, ErrSuperseded
}

// resolved ends the busyness of the cluster of a request that settled it. There
// is none but that of an earlier request which was left: only who has the
// cluster's lock makes it busy, and that is who waits here, or has gone.
func (x *index) resolved(s *Stack, r *indexRequest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !r.left {
		s.table.UnsetBusy(r.cluster)
	}
}

func (x *index) process(s *Stack, batch []*indexRequest) {
	waits := func(r *indexRequest) bool { return r.gen != nil && !r.early }
	if slices.ContainsFunc(batch, waits) && !s.noOrder {
		if err := s.sync(); err != nil {
			for _, r := range batch {
				if waits(r) {
					r.err = err
				}
			}
		}
	}
	ops := x.ops[:0]
	for _, r := range batch {
		if r.gen != nil && r.err == nil && *r.gen != x.syncFailed.Load() && !s.believing {
			r.err = s.lostBefore()
		}
		if r.err != nil {
			continue
		}
		if r.all {
			r.err = x.restoreAll(s)
			continue
		}
		if len(r.ops) == 0 {
			at := format.SectorOfEntry(r.cluster)
			if r.err = x.settle(s, at); r.err == nil {
				r.err = x.restore(s, []int64{at})
			}
			if r.err == nil {
				x.resolved(s, r)
			}
			continue
		}
		for k := range r.ops {
			ops = append(ops, &r.ops[k])
		}
	}
	sortOps(ops)
	if runs := x.runs(s, ops); len(runs) > 0 {
		x.write(s, runs)
	}
	clear(ops)
	x.ops = ops[:0]
	if len(x.writes) > indexWriters { // they have memory that is better given back
		x.writes = nil
	}
	for _, r := range batch {
		for k := range r.ops {
			r.err = errors.Join(r.err, r.ops[k].err)
		}
	}
}

// publish puts an entry into the table; the caller holds x.lost.
func (x *index) publish(s *Stack, i uint64, from, to table.Entry) {
	s.table.Publish(i, to)
	switch {
	case s.inTop(to) && !s.inTop(from):
		s.allocated.Add(1)
	case s.inTop(from) && !s.inTop(to):
		s.allocated.Add(-1)
	}
}

func (s *Stack) inTop(e table.Entry) bool { return e.Mapped() && e.Level() == s.Top() }

// doubtful records sectors whose write failed: nobody knows which of the two
// versions the file has, so it is asked, now or before the next use. The caller
// holds x.lost.
func (x *index) doubtful(s *Stack, ops []*indexOp, err error) {
	if x.doubt == nil {
		x.doubt = map[int64][]indexOp{}
	}
	for _, op := range ops {
		op.err = err
		s.table.SetBusy(op.cluster)
		at := format.SectorOfEntry(op.cluster)
		x.doubt[at] = append(x.doubt[at], *op)
	}
}

// settle reads a sector in doubt back and takes over what the file says. A
// place that a doubtful change gave up or never came to stays unused until the
// next open.
func (x *index) settle(s *Stack, at int64) error {
	ops := x.doubt[at]
	if len(ops) == 0 {
		return nil
	}
	b, want := storage.AlignedBuffer(image.SectorSize), storage.AlignedBuffer(image.SectorSize)
	if _, err := s.top.File.ReadAt(b, at); err != nil {
		return s.top.IOError("read index back", at, err)
	}
	var found []*indexOp
	le := binary.LittleEndian
	for _, op := range ops {
		v := le.Uint32(b[format.HeaderSize+format.BATEntrySize*int64(op.cluster)-at:])
		to := op.to
		switch v {
		case s.stored(op.to):
		case s.stored(op.from):
			to = op.from
		default:
			continue
		}
		found = append(found, &indexOp{cluster: op.cluster, from: op.from, to: to})
	}
	sortOps(found)
	x.fill(s, want, at, found)
	n := min(image.SectorSize, s.top.Header.BATEnd()-at) // behind the BAT is anything
	if len(found) != len(ops) || string(b[:n]) != string(want[:n]) {
		return &image.FormatError{File: s.top.Ref.Path, Offset: at, Class: image.ErrCorrupt, What: "index read back after a failed write",
			Found: "entries that this device never wrote", Want: "those before or after the write; something else writes to the image"}
	}
	x.lost.Lock()
	defer x.lost.Unlock()
	for _, op := range found {
		x.publish(s, op.cluster, op.from, op.to)
	}
	x.mark(s, at)
	delete(x.doubt, at)
	return nil
}
