package kill

import (
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// memory is a disk in memory that does as its writes say, or lies.
type memory struct {
	mu   sync.Mutex
	data []byte
	n    int // writes so far

	// lie takes the place of a write, if there is one, each time that n is a
	// multiple of every.
	lie   func(d *memory, p []byte, off int64) error
	every int

	noZero, noDiscard bool // the command does nothing
	flip, flipped     bool // what was discarded reads now so, now so
	discarded         map[int64][]byte
}

func newMemory(size int64) *memory {
	return &memory{data: make([]byte, size), every: 50, discarded: map[int64][]byte{}}
}

func (d *memory) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	if d.flipped = d.flip && !d.flipped; d.flipped {
		for k := int64(0); k < int64(len(p)); k += Sector {
			if old := d.discarded[off+k]; old != nil && zeroes(p[k:][:Sector]) {
				copy(p[k:], old)
			}
		}
	}
	return len(p), nil
}

func (d *memory) WriteAt(p []byte, off int64) (int, error) {
	// Half of it first, as two transfers: other threads get in between.
	half := len(p) / 2 / Sector * Sector
	d.mu.Lock()
	d.n++
	lie := d.lie != nil && d.n%d.every == 0
	if !lie {
		copy(d.data[off:], p[:half])
	}
	d.mu.Unlock()
	runtime.Gosched()
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := off; k < off+int64(len(p)); k += Sector {
		delete(d.discarded, k)
	}
	if lie {
		return len(p), d.lie(d, p, off)
	}
	copy(d.data[off+int64(half):], p[half:])
	return len(p), nil
}

func (d *memory) WriteDurable(p []byte, off int64) (int, error) { return d.WriteAt(p, off) }

func (d *memory) Flush() error { return nil }

func (d *memory) Zero(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.noZero {
		clear(d.data[off:][:n])
		for k := off; k < off+n; k += Sector {
			delete(d.discarded, k)
		}
	}
	return nil
}

func (d *memory) Discard(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.noDiscard {
		return nil
	}
	for k := off; k < off+n; k += Sector {
		if !zeroes(d.data[k:][:Sector]) {
			d.discarded[k] = append([]byte(nil), d.data[k:][:Sector]...)
		}
	}
	clear(d.data[off:][:n])
	return nil
}

const memorySize = 4 << 20

// work has eight workers do many operations on a disk, and reads it all.
func work(t *testing.T, m *Model, d Disk) {
	if os.Getenv("HOLDFAST_VM") != "" {
		t.Skip("needs no kernel: go test")
	}
	w := m.Start(d, 8, Area{Cluster: 64 << 10, Discards: true})
	operations := uint64(5000)
	if testing.Short() {
		operations = 1000
	}
	for w.Done() < operations {
		time.Sleep(time.Millisecond)
	}
	w.Stop()
	m.Check(d)
	m.Check(d) // twice: what was discarded must have become one or the other
}

func TestModelOfTruth(t *testing.T) {
	for name, d := range map[string]*memory{"discard": newMemory(memorySize), "no discard": {data: make([]byte, memorySize), noDiscard: true, every: 1, discarded: map[int64][]byte{}}} {
		m := NewModel(1, memorySize)
		m.Fill(d, 64<<10, 50)
		work(t, m, d)
		noLies(t, m)
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// noLies fails the test for what a model has found.
func noLies(t *testing.T, m *Model) {
	t.Helper()
	if n, words := m.Wrong(); n != 0 {
		t.Errorf("%d sectors read wrong: %v", n, words)
	}
	if n, words := m.Errors(); n != 0 {
		t.Errorf("%d operations failed: %v", n, words)
	}
}

// TestModelOfLies: whatever a disk lies about is found.
func TestModelOfLies(t *testing.T) {
	type late struct {
		p   []byte
		off int64
	}
	var held *late
	for name, set := range map[string]func(d *memory){
		"lost write": func(d *memory) {
			d.lie = func(*memory, []byte, int64) error { return nil }
		},
		"half a write": func(d *memory) {
			d.lie = func(d *memory, p []byte, off int64) error { copy(d.data[off:], p[:len(p)/2/Sector*Sector]); return nil }
		},
		"a torn sector": func(d *memory) {
			d.lie = func(d *memory, p []byte, off int64) error { copy(d.data[off:], p[:len(p)-100]); return nil }
		},
		"elsewhere": func(d *memory) {
			d.lie = func(d *memory, p []byte, off int64) error { copy(d.data[(off+64<<10)%memorySize:], p); return nil }
		},
		"a write that lands twice, the second time late": func(d *memory) {
			held = nil
			d.lie = func(d *memory, p []byte, off int64) error {
				if held != nil {
					copy(d.data[held.off:], held.p)
				}
				held = &late{append([]byte(nil), p...), off}
				copy(d.data[off:], p)
				return nil
			}
		},
		"noise behind a write": func(d *memory) {
			d.lie = func(d *memory, p []byte, off int64) error {
				copy(d.data[off:], p)
				copy(d.data[min(off+int64(len(p)), memorySize-16):], "0123456789abcdef")
				return nil
			}
		},
		"zeroing that does nothing":         func(d *memory) { d.noZero = true },
		"discards that read now so, now so": func(d *memory) { d.flip = true },
		"an older state of the whole disk": func(d *memory) {
			var old []byte
			d.every = 100
			d.lie = func(d *memory, p []byte, off int64) error {
				if old != nil {
					copy(d.data, old)
				}
				old = append([]byte(nil), d.data...)
				copy(d.data[off:], p)
				return nil
			}
		},
		"another disk": func(d *memory) {
			d.every = 100
			d.lie = func(d *memory, p []byte, off int64) error {
				for k := uint64(0); k < 128; k++ {
					put(d.data[k*Sector:], 99, k, 1)
				}
				copy(d.data[off:], p)
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newMemory(memorySize)
			set(d)
			m := NewModel(2, memorySize)
			m.Fill(d, 64<<10, 50)
			work(t, m, d)
			n, words := m.Wrong()
			if n == 0 {
				t.Fatal("nothing was found")
			}
			t.Logf("%d sectors, the first: %v", n, words[0])
		})
	}
}

// TestModelOfErrors: an error is counted, and what its operation left may be
// the old or the new.
func TestModelOfErrors(t *testing.T) {
	d := newMemory(memorySize)
	odd := false
	d.lie = func(d *memory, p []byte, off int64) error {
		if odd = !odd; odd {
			copy(d.data[off:], p)
		}
		return unix.EIO
	}
	m := NewModel(3, memorySize)
	work(t, m, d)
	if n, _ := m.Errors(); n == 0 {
		t.Error("no error was counted")
	}
	if n, words := m.Wrong(); n != 0 {
		t.Errorf("%d sectors read wrong: %v", n, words)
	}
}
