package stack

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"unsafe"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
	"holdfast/ploop/internal/table"
)

// mappedMemory gives the address space of this process, in bytes.
func mappedMemory(t testing.TB) (n int64) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	fmt.Sscan(string(b), &n)
	return n * int64(os.Getpagesize())
}

// largePages says how much of a table is in large pages, in bytes, and how much of it is
// there at all.
func largePages(t testing.TB, tb *table.Table) (large, all int64) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	from := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(tb.Mem))))
	inside := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var lo, hi uint64
		if n, _ := fmt.Sscanf(sc.Text(), "%x-%x ", &lo, &hi); n == 2 {
			inside = lo >= from && hi <= from+uint64(len(tb.Mem))
			continue
		}
		if name, rest, _ := strings.Cut(sc.Text(), ":"); inside && (name == "AnonHugePages" || name == "Rss") {
			var kib int64
			fmt.Sscan(rest, &kib)
			if name == "Rss" {
				all += kib << 10
			} else {
				large += kib << 10
			}
		}
	}
	return large, all
}

// TestSparseTable wants a table to cost what is in it: the small pages that have entries,
// and at most as much again where that buys a large page.
func TestSparseTable(t *testing.T) {
	const clusters = 4 << 20
	for _, gap := range []int{1, 512, 1000, 1024, 1030, 4096, 100_000, table.LargeEntries} {
		for _, live := range []bool{false, true} {
			tb, err := table.New(clusters)
			if err != nil {
				t.Fatal(err)
			}
			pages := map[int]bool{}
			for i := 0; i < clusters; i += gap {
				pages[i/table.SmallEntries] = true
				if live {
					tb.Publish(uint64(i), table.MakeEntry(0, 1))
				} else {
					tb.Init(uint64(i), table.MakeEntry(0, 1))
				}
			}
			want := int64(len(pages)) * table.SmallPage
			large, all := largePages(t, tb)
			t.Logf("every %d-th cluster, live %v: %d KiB in pages with entries, %d KiB there, %d KiB of it in large pages", gap, live, want>>10, all>>10, large>>10)
			if all > 2*want || all < want {
				t.Errorf("every %d-th cluster, live %v: a table with entries in %d KiB takes %d KiB", gap, live, want>>10, all>>10)
			}
			for i := 0; i < clusters; i += gap {
				if tb.Load(uint64(i)) != table.MakeEntry(0, 1) {
					t.Fatalf("entry %d is lost", i)
				}
			}
			tb.Free()
		}
	}
}

// TestRefusedSuccessionMemory wants a refused succession, an undone one and a retired stack to
// give their tables back at once, not at the next collection.
func TestRefusedSuccessionMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute under the race detector, which has no say in it")
	}
	const size = 4 << 40
	const tableSize = size >> 20 * 8
	base := fullImage(t, size)
	other := fullImage(t, size) // full to its last cluster but one
	ref := mustCreate(t, filepath.Join(memDir(t), "top"), ploop.CreateOptions{Size: size})
	f, err := storage.OpenFile(other.Path, true, false, false)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt(make([]byte, 4), format.HeaderSize+4*int64(size>>20-1))
	f.Close()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	s, err := Open([]image.Ref{base, ref}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	refused := func(level int) {
		h := begin(t, s)
		c := Succession{Refs: []image.Ref{base, ref}, Reopen: make([]bool, 2), Drained: true}
		c.Refs[level], c.Reopen[level] = other, true
		if _, err := h.Prepare(c); !errors.Is(err, image.ErrDiverged) {
			t.Fatal(err)
		}
		if err := h.Abort(); err != nil {
			t.Fatal(err)
		}
	}
	again := func(undo bool) {
		h := begin(t, s)
		next, err := h.Prepare(Succession{Refs: []image.Ref{base, ref}, Reopen: []bool{true, true}, Drained: true})
		if err != nil {
			t.Fatal(err)
		}
		if undo {
			if err := h.Abort(); err != nil {
				t.Fatal(err)
			}
			return
		}
		commit(t, h)
		s = next
	}
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"refused top", func() { refused(1) }},
		{"refused base", func() { refused(0) }},
		{"undone", func() { again(true) }},
		{"retired", func() { again(false) }},
		{"refused at open", func() {
			if _, err := Open([]image.Ref{base, ref}, Options{Continue: true}); err == nil {
				t.Fatal("locked twice")
			}
			if _, err := Open([]image.Ref{base, other}, Options{Continue: true}); !errors.Is(err, image.ErrDiverged) {
				t.Fatal(err)
			}
		}},
		{"closed", func() {
			s, err := Open([]image.Ref{base}, Options{ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
		}},
	} {
		c.do() // what it needs besides, once
		runtime.Gosched()
		before := mappedMemory(t)
		for range 4 {
			c.do()
		}
		// Nothing is collected here, so the heap may have grown, by an arena of 64 MiB.
		eventually(t, c.name+": tables given back", func() bool { return mappedMemory(t)-before < 3*tableSize })
		t.Logf("%s four times: %d KiB more, a table has %d KiB", c.name, (mappedMemory(t)-before)>>10, tableSize>>10)
	}
	s.Close()
}
