package ploop

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// entry is one cluster of the disk in the merged table:
//
//	bits 0–47   sector of the file where the cluster begins
//	bits 48–55  level+1; 0: in no file, reads as zeroes
//	bit 62      lost: a failed sync may have lost this entry in the file
//	bit 63      busy: take the slow way
//
// A zero word is thus "not allocated", and a fresh table is anonymous memory
// that costs nothing until it is written.
type entry uint64

const (
	entryBusy       entry = 1 << 63
	entryLost       entry = 1 << 62
	entryLevelShift       = 48
	entrySector     entry = 1<<entryLevelShift - 1
)

func makeEntry(level int, sector uint64) entry {
	return entry(level+1)<<entryLevelShift | entry(sector)
}

func (e entry) mapped() bool  { return e>>entryLevelShift&0xff != 0 }
func (e entry) level() int    { return int(e>>entryLevelShift&0xff) - 1 }
func (e entry) sector() int64 { return int64(e & entrySector) }
func (e entry) busy() bool    { return e&entryBusy != 0 }
func (e entry) lost() bool    { return e&entryLost != 0 }

// table is the merged BAT, off the Go heap: it may be half a gigabyte that
// the garbage collector has no business with.
type table struct {
	e []atomic.Uint64
}

func newTable(n uint64) (*table, error) {
	mem, err := unix.Mmap(-1, 0, int(max(n, 1)*8), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("memory for a table of %d clusters: %w", n, err)
	}
	// Filling and random lookups both gain much from large pages; a kernel
	// that won't is no loss.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	t := &table{e: unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(mem))), n)}
	// Unmapped with the last reference and not at Close, so that a straggler
	// reads a stale word and not a hole in memory.
	runtime.AddCleanup(t, func(mem []byte) { unix.Munmap(mem) }, mem)
	return t, nil
}

func (t *table) load(i uint64) entry { return entry(t.e[i].Load()) }

// init is store for a table that nobody else has yet, at a tenth of its cost.
func (t *table) init(i uint64, e entry) {
	*(*uint64)(unsafe.Pointer(&t.e[i])) = uint64(e)
}

func (t *table) store(i uint64, e entry) { t.e[i].Store(uint64(e)) }
func (t *table) setBusy(i uint64)        { t.e[i].Or(uint64(entryBusy)) }
func (t *table) unsetBusy(i uint64)      { t.e[i].And(^uint64(entryBusy)) }
func (t *table) setLost(i uint64)        { t.e[i].Or(uint64(entryLost)) }
func (t *table) unsetLost(i uint64)      { t.e[i].And(^uint64(entryLost)) }
