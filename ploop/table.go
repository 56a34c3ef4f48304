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
//	bit 60      shared: another entry has the same place (Options.Damaged)
//	bit 61      bad: not, or not wholly, in the file (Options.Damaged)
//	bit 62      lost: a failed sync may have lost this entry in the file
//	bit 63      busy: take the slow way
//
// A zero word is thus "not allocated", and a fresh table is anonymous memory
// that costs nothing until it is written.
type entry uint64

const (
	entryBusy       entry = 1 << 63
	entryLost       entry = 1 << 62
	entryBad        entry = 1 << 61
	entryShared     entry = 1 << 60
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
func (e entry) slow() bool    { return e&(entryBusy|entryBad) != 0 }
func (e entry) bad() bool     { return e&entryBad != 0 }
func (e entry) lost() bool    { return e&entryLost != 0 }

// table is the merged BAT, off the Go heap: it may be a gigabyte that the
// garbage collector has no business with, and that doesn't wait for it to be
// given back.
//
// Random lookups gain much from large pages, and a sparse disk would pay for
// them: one cluster here and there would cost 2 MiB each instead of 4 KiB. So
// the table counts which of its small pages were ever written, and asks for a
// large one only where it costs at most twice as much.
type table struct {
	e       []atomic.Uint64
	mem     []byte // the mapping
	cleanup runtime.Cleanup

	last    uint64   // page that was counted last
	written bitset   // small pages that were written
	pages   []uint16 // how many, by large page
}

const (
	smallPage     = 4096
	largePage     = 2 << 20 // of x86-64, and of arm64 with small pages of 4 KiB
	smallEntries  = smallPage / 8
	largeEntries  = largePage / 8
	pagesForLarge = largePage / smallPage / 2
)

func newTable(n uint64) (*table, error) {
	size := max(n, 1) * 8
	large := size >= largePage
	room := size
	if large {
		room += largePage // to begin where a large page can
	}
	mem, err := unix.Mmap(-1, 0, int(room), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("memory for a table of %d clusters: %w", n, err)
	}
	base := unsafe.Pointer(unsafe.SliceData(mem))
	if large {
		base = unsafe.Add(base, -uintptr(base)&(largePage-1))
		// Where large pages are given unasked, this table wants none yet.
		_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	}
	t := &table{e: unsafe.Slice((*atomic.Uint64)(base), n), mem: mem, last: ^uint64(0)}
	if large {
		t.pages = make([]uint16, n/largeEntries) // the rest of the end stays small
	}
	// A table that nobody frees, since somebody might still look at it, goes
	// with the last reference.
	t.cleanup = runtime.AddCleanup(t, func(mem []byte) { unix.Munmap(mem) }, mem)
	return t, nil
}

// free gives the memory back at once. The caller knows that nobody looks at
// the table any more.
func (t *table) free() {
	if t == nil || t.mem == nil {
		return
	}
	t.cleanup.Stop()
	mem := t.mem
	t.e, t.mem = nil, nil
	unix.Munmap(mem)
}

// wrote counts the page of entry i. One goroutine at a time calls it. It
// returns the first entry of a large page that has become worth while.
func (t *table) wrote(i uint64) (first uint64, worth bool) {
	page := i / smallEntries
	if page == t.last {
		return 0, false
	}
	t.last = page
	k := i / largeEntries
	if k >= uint64(len(t.pages)) || t.pages[k] >= pagesForLarge || t.written.has(page) {
		return 0, false
	}
	t.written.add(page)
	t.pages[k]++
	return k * largeEntries, t.pages[k] == pagesForLarge
}

// enlarge asks for a large page from entry first on; a kernel that won't is no
// loss. With now what is there is moved into it, else the kernel does so in
// its own time.
func (t *table) enlarge(first uint64, now bool) {
	b := unsafe.Slice((*byte)(unsafe.Pointer(&t.e[first])), largePage)
	if unix.Madvise(b, unix.MADV_HUGEPAGE) == nil && now {
		_ = unix.Madvise(b, unix.MADV_COLLAPSE)
	}
}

func (t *table) load(i uint64) entry { return entry(t.e[i].Load()) }

// init is store for a table that nobody else has yet, at a tenth of its cost.
func (t *table) init(i uint64, e entry) {
	*(*uint64)(unsafe.Pointer(&t.e[i])) = uint64(e)
	if i/smallEntries != t.last {
		if first, worth := t.wrote(i); worth {
			t.enlarge(first, true)
		}
	}
}

// publish is store for a place that changes. One goroutine at a time calls it.
func (t *table) publish(i uint64, e entry) {
	t.store(i, e)
	if first, worth := t.wrote(i); worth {
		t.enlarge(first, false)
	}
}

func (t *table) store(i uint64, e entry) { t.e[i].Store(uint64(e)) }
func (t *table) setBusy(i uint64)        { t.e[i].Or(uint64(entryBusy)) }
func (t *table) unsetBusy(i uint64)      { t.e[i].And(^uint64(entryBusy)) }
func (t *table) setLost(i uint64)        { t.e[i].Or(uint64(entryLost)) }
func (t *table) unsetLost(i uint64)      { t.e[i].And(^uint64(entryLost)) }
