package powercut

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"holdfast/ploop"
	"holdfast/ploop/stack"
)

const (
	block         = 4096
	clusterBlocks = 16
)

// model knows for each block of an image which versions are legal after a power cut: the one that was
// acknowledged when the last flush that succeeded began, and each that was begun since.
type model struct {
	image uint64 // whose blocks these are

	mu      sync.Mutex
	history [][]uint64
	acked   []int // by block, the newest acknowledged in its history
	floor   []int // the oldest legal one
	next    uint64

	clusters []sync.Mutex // one operation at a time
}

func newModel(image uint64, blocks int) *model {
	m := &model{image: image, next: 1, acked: make([]int, blocks), floor: make([]int, blocks), clusters: make([]sync.Mutex, blocks/clusterBlocks)}
	for range blocks {
		m.history = append(m.history, []uint64{0})
	}
	return m
}

// stamp fills a block.
func (m *model) stamp(p []byte, at int, version uint64) {
	v := uint64(0)
	if version != 0 {
		v = m.image<<48 | version<<20 | uint64(at)
	}
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], v)
	}
}

// version is what a block holds; ok: it is one of this image's, whole.
func (m *model) version(p []byte, at int) (version uint64, ok bool) {
	v := binary.LittleEndian.Uint64(p)
	for i := 8; i < len(p); i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != v {
			return 0, false
		}
	}
	return v >> 20 & (1<<28 - 1), v == 0 || v>>48 == m.image && v&(1<<20-1) == uint64(at)
}

func (m *model) begin(first, n int) (version uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	version = m.next
	m.next++
	for i := first; i < first+n; i++ {
		m.history[i] = append(m.history[i], version)
	}
	return version
}

func (m *model) ack(first, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := first; i < first+n; i++ {
		m.acked[i] = len(m.history[i]) - 1
	}
}

func (m *model) flush(s *stack.Stack) error {
	m.mu.Lock()
	marks := slices.Clone(m.acked)
	m.mu.Unlock()
	if err := s.Flush(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range marks {
		m.floor[i] = max(m.floor[i], marks[i])
	}
	return nil
}

// write writes some blocks of a cluster.
func (m *model) write(s *stack.Stack, rng *rand.Rand) error {
	i := rng.IntN(len(m.clusters))
	first, n := rng.IntN(clusterBlocks), 1
	switch rng.IntN(3) {
	case 0:
		first, n = 0, clusterBlocks
	case 1:
		n += rng.IntN(clusterBlocks - first)
	}
	m.clusters[i].Lock()
	defer m.clusters[i].Unlock()
	first += i * clusterBlocks
	p := ploop.AlignedBuffer(n * block)
	version := m.begin(first, n)
	for k := range n {
		m.stamp(p[k*block:][:block], first+k, version)
	}
	if _, err := s.WriteAt(p, int64(first)*block); err != nil {
		return err
	}
	m.ack(first, n)
	return nil
}

// discard gives a cluster back; what it reads as then is settled by a read.
func (m *model) discard(s *stack.Stack, rng *rand.Rand) error {
	i := rng.IntN(len(m.clusters))
	m.clusters[i].Lock()
	defer m.clusters[i].Unlock()
	first := i * clusterBlocks
	m.mu.Lock()
	for k := first; k < first+clusterBlocks; k++ {
		m.history[k] = append(m.history[k], 0)
	}
	m.mu.Unlock()
	if err := s.Discard(int64(first)*block, clusterBlocks*block); err != nil {
		return err
	}
	p := ploop.AlignedBuffer(clusterBlocks * block)
	if _, err := s.ReadAt(p, int64(first)*block); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := first; k < first+clusterBlocks; k++ {
		v, ok := m.version(p[(k-first)*block:][:block], k)
		switch h := m.history[k]; {
		case ok && v == 0:
			m.acked[k] = len(h) - 1
		case ok && v == h[m.acked[k]]:
			m.history[k] = h[:len(h)-1]
		default:
			return fmt.Errorf("block %d is version %d (%t) after a discard of %d", k, v, ok, h[m.acked[k]])
		}
	}
	return nil
}

// legal is what the blocks may hold from here on after a cut.
func (m *model) legal() [][]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	legal := make([][]uint64, len(m.history))
	for i, h := range m.history {
		legal[i] = slices.Clone(h[m.floor[i]:])
	}
	return legal
}
