package kill

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Work is a load under way: workers that each do one operation after the other.
type Work struct {
	m    *Model
	d    Disk
	stop chan struct{}
	done sync.WaitGroup

	reads, writes, zeroed, discards, flushes atomic.Uint64

	longest atomic.Int64 // of an operation, in nanoseconds
	rest    atomic.Int64 // of a worker after each operation, in nanoseconds
}

// Area is what a load keeps to, and what it does there.
type Area struct {
	Cluster  int64 // bytes; some operations hit exactly whole ones
	Discards bool  // the disk has them
}

const largest = 1 << 20

// Start has workers work on the disk at random, until Stop.
func (m *Model) Start(d Disk, workers int, a Area) *Work {
	w := &Work{m: m, d: d, stop: make(chan struct{})}
	m.mu.Lock()
	begun := uint64(m.last)
	m.mu.Unlock()
	for k := range workers {
		w.done.Add(1)
		rng := rand.New(rand.NewPCG(m.seed, begun<<16|uint64(k)))
		go func() {
			defer w.done.Done()
			buf := aligned(largest)
			for {
				select {
				case <-w.stop:
					return
				default:
				}
				began := time.Now()
				w.one(rng, buf, a)
				took := int64(time.Since(began))
				for old := w.longest.Load(); took > old && !w.longest.CompareAndSwap(old, took); old = w.longest.Load() {
				}
				rest := time.Duration(w.rest.Load())
				if n, _ := m.Errors(); n != 0 {
					rest = max(rest, 10*time.Millisecond) // errors may come at once, and for ever
				}
				time.Sleep(rest)
			}
		}()
	}
	return w
}

// Rest has each worker rest after an operation, and leave the processors to what is tested beside it.
func (w *Work) Rest(d time.Duration) { w.rest.Store(int64(d)) }

// Stop waits for the operations under way.
func (w *Work) Stop() {
	close(w.stop)
	w.done.Wait()
}

// Longest is how long the slowest operation has taken since the last call.
func (w *Work) Longest() time.Duration { return time.Duration(w.longest.Swap(0)) }

// Done is how many operations have come back.
func (w *Work) Done() uint64 {
	return w.reads.Load() + w.writes.Load() + w.zeroed.Load() + w.discards.Load() + w.flushes.Load()
}

func (w *Work) String() string {
	return fmt.Sprintf("%d reads, %d writes, %d zeroings, %d discards, %d flushes",
		w.reads.Load(), w.writes.Load(), w.zeroed.Load(), w.discards.Load(), w.flushes.Load())
}

// place chooses a range: half of them in hot spots, where operations meet.
func (w *Work) place(rng *rand.Rand, n, align int64) int64 {
	size := w.m.Size() - n
	at := rng.Int64N(size + 1)
	if rng.IntN(2) == 0 {
		const spots, width = 8, 256 << 10
		at = min(rng.Int64N(spots)*(w.m.Size()/spots)+rng.Int64N(width), size)
	}
	return at / align * align
}

// one does one operation.
func (w *Work) one(rng *rand.Rand, buf []byte, a Area) {
	const page = 4096
	switch dice := rng.IntN(100); {
	case dice < 28:
		n := page * (1 + rng.Int64N(4))
		if dice < 4 {
			n = 256 << 10
		}
		w.read(buf[:n], w.place(rng, n, Sector))
	case dice < 58:
		w.write(buf[:page], w.place(rng, page, page), false)
	case dice < 66:
		n := Sector * (1 + rng.Int64N(7))
		w.write(buf[:n], w.place(rng, n, Sector), false)
	case dice < 80:
		n := page * (1 + rng.Int64N(64))
		w.write(buf[:n], w.place(rng, n, page), false)
	case dice < 82: // many clusters: neighbouring pieces of the index are written at once
		n := min(largest, w.m.Size())
		w.write(buf[:n], w.place(rng, n, a.Cluster), false)
	case dice < 86:
		w.write(buf[:page], w.place(rng, page, page), true)
	case dice < 90:
		w.flush()
	case dice < 95:
		n := page * (1 + rng.Int64N(32))
		w.blank(zero, n, w.place(rng, n, page))
	case dice < 97:
		w.blank(zero, a.Cluster, w.place(rng, a.Cluster, a.Cluster))
	case !a.Discards:
	case dice < 98:
		n := page * (1 + rng.Int64N(32))
		w.blank(discard, n, w.place(rng, n, page))
	default:
		n := min(a.Cluster*(1+rng.Int64N(16)), w.m.Size())
		w.blank(discard, n, w.place(rng, n, a.Cluster))
	}
}

func (w *Work) read(p []byte, off int64) {
	before := w.m.look(off, int64(len(p)))
	n, err := w.d.ReadAt(p, off)
	w.reads.Add(1)
	if err != nil || n != len(p) {
		w.m.failure(fmt.Errorf("read %d bytes at %#x: %d, %w", len(p), off, n, err))
		return
	}
	w.m.found(off, p, before)
}

func (w *Work) write(p []byte, off int64, durable bool) {
	c, ok := w.m.begin(write, off, int64(len(p)))
	if !ok {
		return // somebody is at it
	}
	w.m.fill(c, p)
	do := w.d.WriteAt
	if durable {
		do = w.d.WriteDurable
	}
	n, err := do(p, off)
	w.writes.Add(1)
	if err != nil || n != len(p) {
		err = fmt.Errorf("write %d bytes at %#x: %d, %w", len(p), off, n, err)
	}
	w.m.end(c, err)
}

func (w *Work) blank(k kind, n, off int64) {
	c, ok := w.m.begin(k, off, n)
	if !ok {
		return
	}
	do, count, name := w.d.Zero, &w.zeroed, "zero"
	if k == discard {
		do, count, name = w.d.Discard, &w.discards, "discard"
	}
	err := do(off, n)
	count.Add(1)
	if err != nil {
		err = fmt.Errorf("%s %d bytes at %#x: %w", name, n, off, err)
	}
	w.m.end(c, err)
}

func (w *Work) flush() {
	err := w.d.Flush()
	w.flushes.Add(1)
	if err != nil {
		w.m.failure(fmt.Errorf("flush: %w", err))
	}
}

// Fill writes parts of the disk, some per cent of its clusters, once: what
// deltas below the top are to have.
func (m *Model) Fill(d Disk, cluster int64, percent int) {
	w := &Work{m: m, d: d}
	rng := rand.New(rand.NewPCG(m.seed, uint64(m.last)))
	buf := aligned(int(cluster))
	for off := int64(0); off < m.Size(); off += cluster {
		if rng.IntN(100) < percent {
			w.write(buf[:min(cluster, m.Size()-off)], off, false)
		}
	}
	w.flush()
}
