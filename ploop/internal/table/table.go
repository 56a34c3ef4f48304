// Package table is the merged index of a stack: one word a cluster of the disk.
package table

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/ploop/internal/bitset"
)

// Entry is one cluster of the disk in the merged table:
//
//	bits 0–47   sector of the file where the cluster begins
//	bits 48–55  level+1; 0: in no file, reads as zeroes
//	bit 60      shared: another entry has the same place; only in damaged images
//	bit 61      bad: not, or not wholly, in the file; only in damaged images
//	bit 62      lost: a failed sync may have lost this entry in the file
//	bit 63      busy: take the slow way
//
// A zero word is thus "not allocated", and a fresh table is anonymous memory
// that costs nothing until it is written.
type Entry uint64

const (
	EntryBusy       Entry = 1 << 63
	EntryLost       Entry = 1 << 62
	EntryBad        Entry = 1 << 61
	EntryShared     Entry = 1 << 60
	entryLevelShift       = 48
	EntrySector     Entry = 1<<entryLevelShift - 1
)

// MakeEntry is a cluster of a level's file that begins at sector.
func MakeEntry(level int, sector uint64) Entry {
	return Entry(level+1)<<entryLevelShift | Entry(sector)
}

// Mapped says that the cluster is in a file.
func (e Entry) Mapped() bool { return e>>entryLevelShift&0xff != 0 }

// Level is the file's, 0: the base.
func (e Entry) Level() int { return int(e>>entryLevelShift&0xff) - 1 }

// Sector is where in the file it begins.
func (e Entry) Sector() int64 { return int64(e & EntrySector) }

// Busy says that a change is under way, or failed and has to be found out about.
func (e Entry) Busy() bool { return e&EntryBusy != 0 }

// Slow says that the cluster can't be transferred the fast way.
func (e Entry) Slow() bool { return e&(EntryBusy|EntryBad) != 0 }

// Bad says that the file has it not, or not all of it.
func (e Entry) Bad() bool { return e&EntryBad != 0 }

// Lost says that the entry may not be in the file after a power cut, whatever was synced.
func (e Entry) Lost() bool { return e&EntryLost != 0 }

// Table is the merged BAT, off the Go heap: it may be a gigabyte that the
// garbage collector has no business with, and that doesn't wait for it to be
// given back.
//
// Random lookups gain much from large pages, and a sparse disk would pay for
// them: one cluster here and there would cost 2 MiB each instead of 4 KiB. So
// the table counts which of its small pages were ever written, and asks for a
// large one only where it costs at most twice as much.
type Table struct {
	e       []atomic.Uint64
	Mem     []byte // the mapping
	cleanup runtime.Cleanup

	last    uint64     // page that was counted last
	written bitset.Set // small pages that were written
	pages   []uint16   // how many, by large page
}

const (
	SmallPage     = 4096
	largePage     = 2 << 20 // of x86-64, and of arm64 with small pages of 4 KiB
	SmallEntries  = SmallPage / 8
	LargeEntries  = largePage / 8
	pagesForLarge = largePage / SmallPage / 2
)

// New makes a table of n clusters, none of them allocated.
func New(n uint64) (*Table, error) {
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
	t := &Table{e: unsafe.Slice((*atomic.Uint64)(base), n), Mem: mem, last: ^uint64(0)}
	if large {
		t.pages = make([]uint16, n/LargeEntries) // the rest of the end stays small
	}
	// A table that nobody frees, since somebody might still look at it, goes
	// with the last reference.
	t.cleanup = runtime.AddCleanup(t, func(mem []byte) { unix.Munmap(mem) }, mem)
	return t, nil
}

// Free gives the memory back at once. The caller knows that nobody looks at
// the table any more.
func (t *Table) Free() {
	if t == nil || t.Mem == nil {
		return
	}
	t.cleanup.Stop()
	mem := t.Mem
	t.e, t.Mem = nil, nil
	unix.Munmap(mem)
}

// wrote counts the page of entry i. One goroutine at a time calls it. It
// returns the first entry of a large page that has become worth while.
func (t *Table) wrote(i uint64) (first uint64, worth bool) {
	page := i / SmallEntries
	if page == t.last {
		return 0, false
	}
	t.last = page
	k := i / LargeEntries
	if k >= uint64(len(t.pages)) || t.pages[k] >= pagesForLarge || t.written.Has(page) {
		return 0, false
	}
	t.written.Add(page)
	t.pages[k]++
	return k * LargeEntries, t.pages[k] == pagesForLarge
}

// enlarge asks for a large page from entry first on; a kernel that won't is no
// loss. With now what is there is moved into it, else the kernel does so in
// its own time.
func (t *Table) enlarge(first uint64, now bool) {
	b := unsafe.Slice((*byte)(unsafe.Pointer(&t.e[first])), largePage)
	if unix.Madvise(b, unix.MADV_HUGEPAGE) == nil && now {
		_ = unix.Madvise(b, unix.MADV_COLLAPSE)
	}
}

// Load gives the entry of cluster i.
func (t *Table) Load(i uint64) Entry { return Entry(t.e[i].Load()) }

// Init is store for a table that nobody else has yet, at a tenth of its cost.
func (t *Table) Init(i uint64, e Entry) {
	*(*uint64)(unsafe.Pointer(&t.e[i])) = uint64(e)
	if i/SmallEntries != t.last {
		if first, worth := t.wrote(i); worth {
			t.enlarge(first, true)
		}
	}
}

// Publish is store for a place that changes. One goroutine at a time calls it.
func (t *Table) Publish(i uint64, e Entry) {
	t.store(i, e)
	if first, worth := t.wrote(i); worth {
		t.enlarge(first, false)
	}
}

func (t *Table) store(i uint64, e Entry) { t.e[i].Store(uint64(e)) }

// SetBusy turns transfers of cluster i to the slow way.
func (t *Table) SetBusy(i uint64) { t.e[i].Or(uint64(EntryBusy)) }

// UnsetBusy ends that.
func (t *Table) UnsetBusy(i uint64) { t.e[i].And(^uint64(EntryBusy)) }

// SetLost marks an entry that may be lost.
func (t *Table) SetLost(i uint64) { t.e[i].Or(uint64(EntryLost)) }

// UnsetLost ends that.
func (t *Table) UnsetLost(i uint64) { t.e[i].And(^uint64(EntryLost)) }
