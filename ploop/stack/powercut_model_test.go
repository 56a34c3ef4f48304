package stack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

// cutModel knows for each sector of a disk what is legal after a power cut:
// the version that was acknowledged before the last completed flush began, and
// every one that was begun after it. Version 0 is a sector of zeroes.
type cutModel struct {
	w       *simWorld // whose lock is the model's too
	history [][]uint64
	acked   []int // index of the newest acknowledged version
	floor   []int // index of the oldest legal one
	next    uint64
	groups  []sync.Mutex // operations don't overlap; of groupSectors each
	running bool         // between Open and Close
	// lost is, by sector, how many versions had been begun when a failed sync
	// lost what it was to make durable: no later flush covers those.
	lost []int
}

const groupSectors = 2

// errWrong is a wrong byte, as opposed to an operation that failed.
var errWrong = errors.New("the disk is wrong")

func newCutModel(w *simWorld, now []uint64) *cutModel {
	m := &cutModel{w: w, next: 1, acked: make([]int, len(now)), floor: make([]int, len(now)),
		groups: make([]sync.Mutex, (len(now)+groupSectors-1)/groupSectors)}
	for _, v := range now {
		m.history = append(m.history, []uint64{v})
		m.next = max(m.next, v+1)
	}
	return m
}

// stamp fills sectors from first on with a version.
func stamp(p []byte, first int, version uint64) {
	for i := 0; i < len(p); i += 8 {
		v := version
		if v != 0 {
			v = v<<16 | uint64(first+i/image.SectorSize)
		}
		binary.LittleEndian.PutUint64(p[i:], v)
	}
}

// stamped reads a stamp; ok is false for a sector that no one ever wrote so.
func stamped(p []byte, sector int) (version uint64, ok bool) {
	v := binary.LittleEndian.Uint64(p)
	for i := 8; i < image.SectorSize; i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != v {
			return 0, false
		}
	}
	return v >> 16, v == 0 || v&0xffff == uint64(sector)
}

func (m *cutModel) lock(first, n int) (unlock func()) {
	lo, hi := first/groupSectors, (first+n-1)/groupSectors
	for g := lo; g <= hi; g++ {
		m.groups[g].Lock()
	}
	return func() {
		for g := lo; g <= hi; g++ {
			m.groups[g].Unlock()
		}
	}
}

// begin records that a new version of some sectors may reach the disk from now on.
func (m *cutModel) begin(first, n int, zero bool) (version uint64) {
	m.w.Lock()
	defer m.w.Unlock()
	if !zero {
		version = m.next
		m.next++
	}
	for i := first; i < first+n; i++ {
		m.history[i] = append(m.history[i], version)
	}
	return version
}

func (m *cutModel) ack(first, n int, durable bool) {
	m.w.Lock()
	defer m.w.Unlock()
	for i := first; i < first+n; i++ {
		m.acked[i] = len(m.history[i]) - 1
		if durable {
			m.floor[i] = m.acked[i]
		}
	}
}

// flush raises the floor if do succeeds.
func (m *cutModel) flush(do func() error) error {
	m.w.Lock()
	marks := slices.Clone(m.acked)
	m.w.Unlock()
	if err := do(); err != nil {
		return err
	}
	m.w.Lock()
	defer m.w.Unlock()
	for i := range marks {
		if m.lost == nil || marks[i] >= m.lost[i] {
			m.floor[i] = max(m.floor[i], marks[i])
		}
	}
	return nil
}

// worker does random operations as one of a device's threads.
type worker struct {
	m   *cutModel
	s   *Stack
	r   *Reader
	rng *rand.Rand
}

// pick chooses a range: by whole clusters, or any.
func (k *worker) pick() (first, n int) {
	total, c := len(k.m.history), int(k.s.cluster/image.SectorSize)
	first = k.rng.IntN(total)
	n = 1 + k.rng.IntN(2*c)
	if k.rng.IntN(2) == 0 {
		first, n = first/c*c, (n+c-1)/c*c
	}
	return first, min(n, total-first)
}

func (k *worker) step() error {
	m, s := k.m, k.s
	first, n := k.pick()
	off, size := int64(first)*image.SectorSize, int64(n)*image.SectorSize
	switch op := k.rng.IntN(16); op {
	case 0, 1, 2, 3:
		defer m.lock(first, n)()
		p := storage.AlignedBuffer(int(size))
		stamp(p, first, m.begin(first, n, false))
		if _, err := s.WriteAt(p, off); err != nil {
			return err
		}
		m.ack(first, n, false)
	case 4, 5, 6, 7:
		return k.fast(op == 4)
	case 8, 9:
		defer m.lock(first, n)()
		m.begin(first, n, true)
		if err := s.WriteZeroes(off, size, op == 8); err != nil {
			return err
		}
		m.ack(first, n, false)
	case 10, 11:
		defer m.lock(first, n)()
		m.begin(first, n, true)
		if err := s.Discard(off, size); err != nil {
			return err
		}
		// A discard may leave what it likes, but only zeroes or what was.
		p := make([]byte, size)
		if _, err := s.ReadAt(p, off); err != nil {
			return err
		}
		m.w.Lock()
		for i := first; i < first+n; i++ {
			h := m.history[i]
			v, ok := stamped(p[(i-first)*image.SectorSize:], i)
			if !ok || !slices.Contains(h[m.acked[i]:], v) {
				m.w.Unlock()
				return fmt.Errorf("%w: sector %d is version %d (%v) after a discard of %d", errWrong, i, v, ok, h[m.acked[i]:])
			} else if v != 0 {
				m.history[i] = h[:len(h)-1] // nothing was done to it
			} else {
				m.acked[i] = len(h) - 1
			}
		}
		m.w.Unlock()
	case 12:
		return m.flush(s.Flush)
	case 13:
		return m.flush(func() error { return ringFlush(s) })
	default:
		defer m.lock(first, n)()
		p := make([]byte, size)
		if _, err := s.ReadAt(p, off); err != nil {
			return err
		}
		return m.compare(p, first)
	}
	return nil
}

// fast writes as the device's fast path does, with or without FUA.
func (k *worker) fast(fua bool) error {
	m, s := k.m, k.s
	c := int(s.cluster / image.SectorSize)
	first, _ := k.pick()
	n := min(1+k.rng.IntN(c-first%c), len(m.history)-first)
	defer m.lock(first, n)()
	at := k.r.Locate(int64(first)*image.SectorSize, n*image.SectorSize, true)
	if at.Where != Direct {
		return nil
	}
	p := storage.AlignedBuffer(n * image.SectorSize)
	stamp(p, first, m.begin(first, n, false))
	f := s.deltas[at.Level].File.(*simFile)
	durable := fua && !s.IndexDirty()
	var err error
	if durable {
		err = f.WriteDurable(p, at.Offset)
	} else {
		_, err = f.WriteAt(p, at.Offset)
	}
	k.r.Leave(at.Token)
	if err == nil {
		m.ack(first, n, durable)
	}
	return err
}

// compare wants the newest versions in p, where any that wasn't acknowledged
// may be it. The caller has locked the range.
func (m *cutModel) compare(p []byte, first int) error {
	m.w.Lock()
	defer m.w.Unlock()
	for i := range len(p) / image.SectorSize {
		h := m.history[first+i]
		h = h[m.acked[first+i]:]
		if v, ok := stamped(p[i*image.SectorSize:], first+i); !ok || !slices.Contains(h, v) {
			return fmt.Errorf("%w: sector %d is version %d (%v), want one of %v", errWrong, first+i, v, ok, h)
		}
	}
	return nil
}
