package stack

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"

	"holdfast/internal/failpoint"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
	"holdfast/ploop/internal/table"
)

// indexWriters is how many writes of the index are under way at once at most, each with a thread. The
// sectors of one round are apart from one another: their order means nothing.
const indexWriters = 16

// indexRun is a write of adjacent sectors of the BAT.
type indexRun struct {
	at  int64 // in the file
	n   int64 // bytes
	ops []*indexOp
	b   []byte
	err error
}

func sortOps(ops []*indexOp) {
	slices.SortFunc(ops, func(a, b *indexOp) int { return cmp.Compare(a.cluster, b.cluster) })
}

// runs makes writes of changes, which are in order. Those to sectors in doubt that can't be settled
// fail, and their entries are as they were.
func (x *index) runs(s *Stack, ops []*indexOp) []indexRun {
	runs := x.writes[:0]
	for len(ops) > 0 {
		at := format.SectorOfEntry(ops[0].cluster)
		k := 1
		for k < len(ops) && format.SectorOfEntry(ops[k].cluster) == at {
			k++
		}
		if err := x.settle(s, at); err != nil {
			s.untouched(ops[:k], err)
		} else if last := len(runs) - 1; last >= 0 && runs[last].at+runs[last].n == at && runs[last].n < storage.CopyChunk {
			runs[last].n += image.SectorSize
			runs[last].ops = runs[last].ops[:len(runs[last].ops)+k] // which follow in memory as well
		} else {
			if len(runs) < cap(runs) {
				runs = runs[:len(runs)+1] // with the buffer of the one before
			} else {
				runs = append(runs, indexRun{})
			}
			last := &runs[len(runs)-1]
			*last = indexRun{at: at, n: image.SectorSize, ops: ops[:k], b: last.b}
		}
		ops = ops[k:]
	}
	x.writes = runs
	return runs
}

// untouched ends changes that nothing was done for.
func (s *Stack) untouched(ops []*indexOp, err error) {
	for _, op := range ops {
		op.attempted, op.err = false, err
		s.table.UnsetBusy(op.cluster)
	}
}

// write writes to the BAT, and publishes what it says then.
func (x *index) write(s *Stack, runs []indexRun) {
	err := s.life.beginStructure()
	if err == nil {
		// A write behind the end would make a file longer that was cut off.
		if err = s.space.intact(s); err != nil {
			s.life.endStructure()
		}
	}
	if err != nil {
		for _, r := range runs {
			s.untouched(r.ops, err)
		}
		return
	}
	gen := x.syncFailed.Load()
	for i := range runs {
		r := &runs[i]
		for _, op := range r.ops {
			op.attempted = true
		}
		if int64(cap(r.b)) < r.n || cap(r.b) > storage.BufferAlign {
			r.b = storage.AlignedBuffer(int(r.n))
		}
		r.b = r.b[:r.n]
		x.fill(s, r.b, r.at, r.ops)
		if half := r.n / 2 / image.SectorSize * image.SectorSize; half > 0 && failpoint.Armed("index-half") {
			_ = s.top.Write(r.b[:half], r.at)
			failpoint.Die("index-half")
		}
	}
	s.writeRuns(runs)
	failpoint.Hit("index-written")
	failed := false
	for i := range runs {
		r := &runs[i]
		failed = failed || r.err != nil
		x.written(s, r.at, r.n, gen, r.err == nil, func() {
			if r.err != nil {
				x.doubtful(s, r.ops, s.top.IOError("write index", r.at, r.err))
				return
			}
			for _, op := range r.ops {
				x.publish(s, op.cluster, op.from, op.to)
			}
		})
	}
	s.life.endStructure()
	if failed { // what there is now is asked for, which may hang
		x.settleRuns(s, runs)
	}
}

func (r *indexRun) write(s *Stack) { _, r.err = s.top.File.WriteAt(r.b, r.at) }

// writeRuns writes, some at a time.
func (s *Stack) writeRuns(runs []indexRun) {
	if len(runs) == 1 {
		runs[0].write(s)
		return
	}
	var next atomic.Int64
	work := func() {
		for i := next.Add(1) - 1; i < int64(len(runs)); i = next.Add(1) - 1 {
			runs[i].write(s)
		}
	}
	var group sync.WaitGroup
	for range min(indexWriters, len(runs)) - 1 {
		group.Go(work)
	}
	work()
	group.Wait()
}

// settleRuns finds out what came of writes that failed.
func (x *index) settleRuns(s *Stack, runs []indexRun) {
	for i := range runs {
		r := &runs[i]
		for at := r.at; r.err != nil && at < r.at+r.n; at += image.SectorSize {
			if err := x.settle(s, at); err != nil {
				s.log("%v; its clusters are held until the index can be read back", err)
			}
		}
	}
}

// fill builds sectors of header and BAT from at on, from the table and the
// changes, in order, that are about to be written.
func (x *index) fill(s *Stack, b []byte, at int64, changes []*indexOp) {
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
		e := s.table.Load(i)
		if len(changes) > 0 && changes[0].cluster == i {
			e, changes = changes[0].to, changes[1:]
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
