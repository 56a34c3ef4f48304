package stack

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// simFile is storage in memory that knows what would survive a power cut: all
// that completed before the last completed Sync began, and of everything
// after it whatever the cut chooses, torn at sectors. Operations are in flight
// for a while, so that cuts and faults can fall in between.
type simFile struct {
	w       *simWorld
	now     []byte // what reads see
	durable []byte
	pending []*simOp // in the order of their start
}

// simWorld is what the files of a stack share: the lock, which a model may
// share as well, and the hooks.
type simWorld struct {
	sync.Mutex
	files map[string]*simFile
	yield bool // let other goroutines run while an operation is in flight
	// event is called, locked, before and after each change of a file.
	event func()
	// fault decides, locked, what becomes of an operation; nil: it works.
	fault func(f *simFile, kind string, off, n int64) simFault
	// reserves: what the files are given for data lasts as zeroes.
	reserves bool
	// noHoles: the storage can't take space back.
	noHoles bool
	syncs   int
	// beforeSync is called, not locked, when a Sync begins; nil: nothing.
	beforeSync func()
}

// simFault is what an operation comes to.
type simFault struct {
	err     error
	arrives bool // it is done nevertheless
	partial bool // half of it is
	lost    bool // it isn't done, and said to be
}

type simOp struct {
	kind          byte // w, t(runcate), a(llocate), z(ero)
	off, n        int64
	data          []byte
	done, durable bool
	failed        bool           // whoever asked was told that it wasn't done
	through       bool           // durable when it is done
	superseded    map[int64]bool // its sectors that a durable write went over
}

func newSimWorld() *simWorld { return &simWorld{files: map[string]*simFile{}} }

func (w *simWorld) add(name string, b []byte) image.Ref {
	w.files[name] = &simFile{w: w, now: slices.Clone(b), durable: slices.Clone(b)}
	return image.Ref{Path: name}
}

// addImage adds an empty image.
func (w *simWorld) addImage(name string, version int, clusterSectors uint32, sectors uint64) image.Ref {
	h, err := format.NewHeader(version, sectors, clusterSectors)
	if err != nil {
		panic(err)
	}
	b := make([]byte, h.DataStart()*image.SectorSize)
	copy(b, h.Encode())
	return w.add(name, b)
}

func (w *simWorld) open(path string, write, direct bool) (storage.File, error) {
	f := w.files[path]
	if f == nil {
		return nil, fmt.Errorf("no file %q", path)
	}
	return f, nil
}

func (w *simWorld) happens() {
	if w.event != nil {
		w.event()
	}
}

// apply does op to b, those sectors of it that keep wants.
func (op *simOp) apply(b []byte, keep func() bool) []byte {
	reach := func(n int64) {
		if int64(len(b)) < n {
			b = append(b, make([]byte, n-int64(len(b)))...)
		}
	}
	switch op.kind {
	case 't':
		if keep() {
			reach(op.off)
			b = b[:op.off:op.off]
		}
	case 'a':
		if keep() {
			reach(op.off + op.n)
		}
	default:
		for at := int64(0); at < op.n; at += image.SectorSize {
			if op.superseded[(op.off+at)/image.SectorSize] || !keep() {
				continue
			}
			if op.kind == 'z' {
				if off := op.off + at; off < int64(len(b)) {
					clear(b[off:min(off+image.SectorSize, int64(len(b)))])
				}
				continue
			}
			end := min(at+image.SectorSize, op.n)
			reach(op.off + end)
			copy(b[op.off+at:], op.data[at:end])
		}
	}
	return b
}

func all() bool { return true }

func (f *simFile) do(op *simOp, kind string) error {
	f.w.Lock()
	defer f.w.Unlock()
	f.pending = append(f.pending, op)
	f.w.happens()
	if f.w.yield {
		f.w.Unlock()
		runtime.Gosched()
		f.w.Lock()
	}
	var fault simFault
	if f.w.fault != nil {
		fault = f.w.fault(f, kind, op.off, op.n)
	}
	if fault.partial {
		op.n = op.n / 2 / image.SectorSize * image.SectorSize
	}
	op.failed = fault.err != nil
	if fault.err == nil && !fault.lost || fault.arrives || fault.partial && op.n > 0 {
		f.now = op.apply(f.now, all)
		op.done = true
		if op.through && fault.err == nil && !fault.lost {
			f.writeThrough(op) // at once, or a sync that fails could still lose it
		}
	} else {
		f.pending = slices.DeleteFunc(f.pending, func(o *simOp) bool { return o == op })
	}
	f.w.happens()
	return fault.err
}

func (f *simFile) ReadAt(p []byte, off int64) (int, error) {
	f.w.Lock()
	defer f.w.Unlock()
	if f.w.fault != nil {
		if fault := f.w.fault(f, "read", off, int64(len(p))); fault.partial && off < int64(len(f.now)) {
			return copy(p[:len(p)/2], f.now[off:]), fault.err
		} else if fault.err != nil {
			return 0, fault.err
		}
	}
	n := 0
	if off < int64(len(f.now)) {
		n = copy(p, f.now[off:])
	}
	if n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

func (f *simFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.do(&simOp{kind: 'w', off: off, n: int64(len(p)), data: slices.Clone(p)}, "write"); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteDurable is a write with RWF_DSYNC.
func (f *simFile) WriteDurable(p []byte, off int64) error {
	return f.do(&simOp{kind: 'w', off: off, n: int64(len(p)), data: slices.Clone(p), through: true}, "write")
}

// writeThrough makes op durable, and what began before it no longer a danger to it.
func (f *simFile) writeThrough(op *simOp) {
	for _, o := range f.pending {
		if o == op {
			break
		}
		if o.superseded == nil {
			o.superseded = map[int64]bool{}
		}
		for at := int64(0); at < op.n; at += image.SectorSize {
			o.superseded[(op.off+at)/image.SectorSize] = true
		}
	}
	f.settle([]*simOp{op})
}

func (f *simFile) settle(ops []*simOp) {
	for _, op := range ops {
		if !op.durable {
			op.durable = true
			f.durable = op.apply(f.durable, all)
		}
	}
	f.pending = slices.DeleteFunc(f.pending, func(o *simOp) bool { return o.durable })
}

func (f *simFile) Sync() error {
	if f.w.beforeSync != nil {
		f.w.beforeSync()
	}
	err := f.sync()
	if err != nil && f.w.yield {
		for range 20 { // others may go on before this is heard of
			runtime.Gosched()
		}
	}
	return err
}

func (f *simFile) sync() error {
	f.w.Lock()
	defer f.w.Unlock()
	f.w.syncs++
	var ops []*simOp
	for _, op := range f.pending {
		if op.done {
			ops = append(ops, op)
		}
	}
	f.w.happens()
	if f.w.yield {
		f.w.Unlock()
		runtime.Gosched()
		f.w.Lock()
	}
	if f.w.fault != nil {
		if fault := f.w.fault(f, "sync", 0, 0); fault.err != nil {
			return fault.err
		}
	}
	f.settle(ops)
	f.w.happens()
	return nil
}

// loseCache is what a failed sync may do: of what isn't durable yet some gets
// there, torn, and the rest never will, whatever later syncs say, although
// reads go on to see it.
func (f *simFile) loseCache(rng *rand.Rand) {
	for _, op := range f.pending {
		// The file system's own changes are in its journal, which keeps
		// them or gives up altogether.
		if op.done {
			f.durable = op.apply(f.durable, func() bool { return op.kind != 'w' || rng.IntN(2) == 0 })
			op.durable = true // nobody writes it again, not even a sync under way
		}
	}
	f.pending = slices.DeleteFunc(f.pending, func(o *simOp) bool { return o.done })
}

// cut gives what the file may hold after a power cut, locked.
func (f *simFile) cut(rng *rand.Rand) []byte {
	b := slices.Clone(f.durable)
	bias := rng.Float64() // from "nothing arrived" to "nearly everything"
	for _, op := range f.pending {
		whole, keep := rng.IntN(2) == 0, rng.Float64() < bias
		b = op.apply(b, func() bool {
			if whole {
				return keep
			}
			return rng.Float64() < bias
		})
	}
	return b
}

func (f *simFile) Truncate(size int64) error {
	return f.do(&simOp{kind: 't', off: size}, "truncate")
}

func (f *simFile) Allocate(off, n int64) (lasting bool, err error) {
	err = f.do(&simOp{kind: 'a', off: off, n: n}, "allocate")
	return err == nil && f.w.reserves, err
}

func (f *simFile) Zero(off, n int64, keep bool) error {
	return f.do(&simOp{kind: 'z', off: off, n: n}, "zero")
}

func (f *simFile) Discard(off, n int64) error { return f.Zero(off, n, false) }
func (f *simFile) DiscardUnit() int64 {
	if f.w.noHoles {
		return 0
	}
	return image.SectorSize
}

func (f *simFile) Size() (int64, error) {
	f.w.Lock()
	defer f.w.Unlock()
	if f.w.fault != nil {
		if fault := f.w.fault(f, "size", 0, 0); fault.err != nil {
			return 0, fault.err
		}
	}
	return int64(len(f.now)), nil
}

func (f *simFile) Fd() int       { return -1 }
func (f *simFile) Close() error  { return nil }
func (f *simFile) Locked() bool  { return true }
func (f *simFile) Unlock() error { return nil }
func (f *simFile) Lock() error   { return nil }
