package kill

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// Model knows what a disk may read as. Its methods may be called from any
// goroutine.
type Model struct {
	seed uint64

	mu      sync.Mutex
	sectors []sector
	last    uint32 // number of the operation that was begun last
	wrong   []error
	failed  []error
	lies    int // how many wrong there were; the slice has the first ones
	errors  int
}

// sector is what may be read of one. An operation is in flight while begun
// differs from done; one that failed stays so for ever.
type sector struct {
	begun, done uint32 // operations that change it
	data        uint32 // the operation whose data may be read, 0: none's
	zero        bool   // zeroes may be read
	zeroing     uint32 // the last operation begun that makes zeroes
}

// keep bounds the complaints that are kept in words.
const keep = 20

// NewModel makes the model of a disk of size bytes that reads as zeroes.
func NewModel(seed uint64, size int64) *Model {
	m := &Model{seed: seed, sectors: make([]sector, size/Sector)}
	for i := range m.sectors {
		m.sectors[i].zero = true
	}
	return m
}

// Size is the disk's in bytes.
func (m *Model) Size() int64 { return int64(len(m.sectors)) * Sector }

// change is an operation that changes a range of sectors.
type change struct {
	kind  kind
	first int
	n     int
	op    uint32
}

type kind uint8

const (
	write   kind = iota
	zero         // reads as zeroes afterwards
	discard      // reads as zeroes or as before
)

// begin begins a change, unless another one is in flight in the range.
func (m *Model) begin(k kind, off, n int64) (change, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := change{kind: k, first: int(off / Sector), n: int(n / Sector)}
	for i := c.first; i < c.first+c.n; i++ {
		if m.sectors[i].begun != m.sectors[i].done {
			return c, false
		}
	}
	m.last++
	c.op = m.last
	for i := c.first; i < c.first+c.n; i++ {
		m.sectors[i].begun = c.op
		if k != write {
			m.sectors[i].zeroing = c.op
		}
	}
	return c, true
}

// fill makes what a write is to write.
func (m *Model) fill(c change, p []byte) {
	for i := range c.n {
		put(p[i*Sector:][:Sector], m.seed, uint64(c.first+i), c.op)
	}
}

// end ends a change. With an error nobody knows what is on the disk, and the
// range is not used any more.
func (m *Model) end(c change, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.fail(err)
		return
	}
	for i := c.first; i < c.first+c.n; i++ {
		s := &m.sectors[i]
		s.done = c.op
		switch c.kind {
		case write:
			s.data, s.zero = c.op, false
		case zero:
			s.data, s.zero = 0, true
		case discard:
			s.zero = true
		}
	}
}

// fail takes an I/O error; the caller holds mu.
func (m *Model) fail(err error) {
	if m.errors++; m.errors <= keep {
		m.failed = append(m.failed, err)
	}
}

func (m *Model) failure(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail(err)
}

// look begins a read: what follows may find what is there now, or what was
// begun later.
func (m *Model) look(off, n int64) []sector {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]sector(nil), m.sectors[off/Sector:(off+n)/Sector]...)
}

// found ends a read. before is what look said.
func (m *Model) found(off int64, p []byte, before []sector) {
	ops := make([]uint32, len(before))
	bad := make([]error, len(before))
	first := uint64(off / Sector)
	for k := range before {
		ops[k], bad[k] = get(p[k*Sector:][:Sector], m.seed, first+uint64(k))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, was := range before {
		s, op := &m.sectors[int(first)+k], ops[k]
		switch {
		case errors.Is(bad[k], errTorn) && s.begun != was.done:
			// It was written meanwhile, and nobody promises more: the
			// storage may be memory, and a read and a write two copies.
			bad[k] = nil
			continue
		case bad[k] != nil:
		case op == 0 && (was.zero || s.zeroing > was.done):
		case op != 0 && (op == was.data || op > was.done && op <= s.begun):
		case op == 0:
			bad[k] = fmt.Errorf("zeroes")
		default:
			bad[k] = fmt.Errorf("data of operation %d", op)
		}
		if bad[k] == nil && was.begun == was.done && s.begun == was.done {
			// Nothing has moved: what was read once is what there is.
			if op == 0 {
				s.data = 0
			} else {
				s.zero = false
			}
			if op != 0 && s.data != op || op == 0 && !s.zero {
				bad[k] = fmt.Errorf("what it was before another reader saw it changed")
			}
		}
		if bad[k] != nil {
			if m.lies++; m.lies <= keep {
				m.wrong = append(m.wrong, fmt.Errorf("sector %d (offset %#x) reads as %w; acknowledged: %s; begun since: %d",
					first+uint64(k), (first+uint64(k))*Sector, bad[k], was, s.begun))
			}
		}
	}
}

func (s sector) String() string {
	text := fmt.Sprintf("operation %d", s.done)
	switch {
	case s.data != 0 && s.zero:
		text += fmt.Sprintf(" (data of %d, or zeroes)", s.data)
	case s.data != 0:
		text += fmt.Sprintf(" (data of %d)", s.data)
	default:
		text += " (zeroes)"
	}
	if s.begun != s.done {
		text += fmt.Sprintf(", in flight: %d", s.begun)
	}
	return text
}

// Check reads everything. It may run beside work, and finds the more the less
// there is.
func (m *Model) Check(d io.ReaderAt) {
	const step = 1 << 20
	p := aligned(step)
	for off := int64(0); off < m.Size(); off += step {
		n := min(step, m.Size()-off)
		before := m.look(off, n)
		if k, err := d.ReadAt(p[:n], off); err != nil || int64(k) != n {
			m.failure(fmt.Errorf("read %d bytes at %#x: %d, %w", n, off, k, err))
			continue
		}
		m.found(off, p[:n], before)
	}
}

// Wrong is how many sectors did not read as they may, with the first of them in
// words.
func (m *Model) Wrong() (int, []error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lies, m.wrong
}

// Errors is how many operations failed, with the first of them in words.
func (m *Model) Errors() (int, []error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.errors, m.failed
}
