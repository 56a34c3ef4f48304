package stack

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"holdfast/internal/failpoint"
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

// commit brings ops into the file and, that done, into the table. With gen it
// first syncs the data that the new entries point to, unless they are early. After an error
// attempted says that the file may have the new entries, now or later, so that their
// places must not be reused.
func (x *index) commit(s *Stack, ops []indexOp, gen *uint64, early bool) (attempted bool, err error) {
	r := &indexRequest{ops: ops, gen: gen, early: early}
	left, err := x.run(s, r)
	if left {
		return true, err // ops are the leader's
	}
	return slices.ContainsFunc(ops, func(op indexOp) bool { return op.attempted }), err
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
	r.turn = make(chan bool, 1)
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
	x.queue = nil
	x.mu.Unlock()

	x.process(s, batch)

	x.mu.Lock()
	for _, other := range batch {
		if other != r {
			other.turn <- false
		}
	}
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
	bySector := map[int64][]*indexOp{}
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
			at := format.SectorOfEntry(r.ops[k].cluster)
			bySector[at] = append(bySector[at], &r.ops[k])
		}
	}
	sectors := make([]int64, 0, len(bySector))
	for at, ops := range bySector {
		if err := x.settle(s, at); err != nil {
			// Not touched: these entries are as they were.
			for _, op := range ops {
				op.err = err
				s.table.UnsetBusy(op.cluster)
			}
			continue
		}
		sectors = append(sectors, at)
	}
	slices.SortFunc(sectors, cmp.Compare)
	for len(sectors) > 0 {
		n := adjacent(sectors)
		x.writeRun(s, sectors[:n], bySector)
		sectors = sectors[n:]
	}
	for _, r := range batch {
		for k := range r.ops {
			r.err = errors.Join(r.err, r.ops[k].err)
		}
	}
}

// fill builds sectors of header and BAT from at on, from the table and the
// changes that are about to be written.
func (x *index) fill(s *Stack, b []byte, at int64, changes map[uint64]table.Entry) {
	h := &s.top.Header
	clear(b)
	first := uint64(0)
	p := b
	if at == 0 {
		copy(p, h.Encode())
		p = p[format.HeaderSize:]
	} else {
		first = uint64(at-format.HeaderSize) / format.BATEntrySize
	}
	for i := first; len(p) >= format.BATEntrySize && i < s.clusters; i, p = i+1, p[format.BATEntrySize:] {
		e, ok := changes[i]
		if !ok {
			e = s.table.Load(i)
		}
		binary.LittleEndian.PutUint32(p, s.stored(e))
	}
}

// stored is how the top's BAT says an entry: 0 for what isn't in the top.
func (s *Stack) stored(e table.Entry) uint32 {
	if !s.inTop(e) {
		return 0
	}
	v, _ := s.top.Header.EntryOf(uint64(e.Sector()))
	return v
}

// writeRun writes adjacent sectors of the BAT and publishes what they say.
func (x *index) writeRun(s *Stack, sectors []int64, bySector map[int64][]*indexOp) {
	changes := map[uint64]table.Entry{}
	for _, at := range sectors {
		for _, op := range bySector[at] {
			changes[op.cluster] = op.to
			op.attempted = true
		}
	}
	b := storage.AlignedBuffer(len(sectors) * image.SectorSize)
	x.fill(s, b, sectors[0], changes)
	gen := x.syncFailed.Load()
	err := s.life.beginStructure()
	if err == nil {
		// A write behind the end would make a file longer that was cut off.
		if err = s.space.intact(s); err != nil {
			s.life.endStructure()
		}
	}
	if err != nil {
		for _, at := range sectors {
			for _, op := range bySector[at] {
				op.attempted, op.err = false, err
				s.table.UnsetBusy(op.cluster)
			}
		}
		return
	}
	if half := len(sectors) / 2; half > 0 && failpoint.Armed("index-half") {
		_ = s.top.Write(b[:half*image.SectorSize], sectors[0])
		failpoint.Die("index-half")
	}
	_, err = s.top.File.WriteAt(b, sectors[0])
	failpoint.Hit("index-written")
	if err != nil {
		err = s.top.IOError("write index", sectors[0], err)
		x.written(s, sectors, gen, false, func() {
			for _, at := range sectors {
				x.doubtful(s, at, bySector[at], err)
			}
		})
		s.life.endStructure() // before it is asked, which may hang
		for _, at := range sectors {
			if err := x.settle(s, at); err != nil {
				s.log("%v; its clusters are held until the index can be read back", err)
			}
		}
		return
	}
	x.written(s, sectors, gen, true, func() {
		for _, at := range sectors {
			for _, op := range bySector[at] {
				x.publish(s, op.cluster, op.from, op.to)
			}
		}
	})
	s.life.endStructure()
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

// doubtful records a sector whose write failed: nobody knows which of the two
// versions the file has, so it is asked, now or before the next use. The caller
// holds x.lost.
func (x *index) doubtful(s *Stack, at int64, ops []*indexOp, err error) {
	if x.doubt == nil {
		x.doubt = map[int64][]indexOp{}
	}
	for _, op := range ops {
		op.err = err
		s.table.SetBusy(op.cluster)
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
	found := map[uint64]table.Entry{}
	le := binary.LittleEndian
	for _, op := range ops {
		v := le.Uint32(b[format.HeaderSize+format.BATEntrySize*int64(op.cluster)-at:])
		switch v {
		case s.stored(op.to):
			found[op.cluster] = op.to
		case s.stored(op.from):
			found[op.cluster] = op.from
		}
	}
	x.fill(s, want, at, found)
	n := min(image.SectorSize, s.top.Header.BATEnd()-at) // behind the BAT is anything
	if len(found) != len(ops) || string(b[:n]) != string(want[:n]) {
		return &image.FormatError{File: s.top.Ref.Path, Offset: at, Class: image.ErrCorrupt, What: "index read back after a failed write",
			Found: "entries that this device never wrote", Want: "those before or after the write; something else writes to the image"}
	}
	x.lost.Lock()
	defer x.lost.Unlock()
	for _, op := range ops {
		x.publish(s, op.cluster, op.from, found[op.cluster])
	}
	x.mark(s, at)
	delete(x.doubt, at)
	return nil
}
