package stack

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// benchStack has deltas images of 1 MiB clusters; each cluster of the disk
// lies in one of them.
func benchStack(b testing.TB, deltas int) *Stack {
	b.Helper()
	const clusters = 4096
	dir := memDir(b)
	rng := rand.New(rand.NewPCG(1, 1))
	where := make([]int, clusters)
	for i := range where {
		where[i] = rng.IntN(deltas)
	}
	var refs []image.Ref
	for level := range deltas {
		h, err := format.NewHeader(2, clusters*2048, 2048)
		if err != nil {
			b.Fatal(err)
		}
		img := make([]byte, h.DataStart()*image.SectorSize)
		copy(img, h.Encode())
		n := uint64(0)
		for i, w := range where {
			if w == level {
				v, _ := h.EntryOf(h.SectorAt(n))
				binary.LittleEndian.PutUint32(img[format.HeaderSize+4*i:], v)
				n++
			}
		}
		path := filepath.Join(dir, fmt.Sprint(level))
		if err := os.WriteFile(path, img, 0o600); err != nil {
			b.Fatal(err)
		}
		if err := os.Truncate(path, int64(h.SectorAt(n))*image.SectorSize); err != nil {
			b.Fatal(err)
		}
		refs = append(refs, image.Ref{Path: path})
	}
	s, err := Open(refs, Options{ReadOnly: true, NoDirect: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

func locateMany(s *Stack, r *Reader, n int) {
	x := uint64(1)
	mask := uint64(s.Size()/4096 - 1) // a power of two
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		at := r.Locate(int64(x&mask)*4096, 4096, false)
		if at.Where != Direct {
			panic(at)
		}
		r.Leave(at.Token)
	}
}

// BenchmarkLocate is the engine's part of a mapped request, at any depth.
func BenchmarkLocate(b *testing.B) {
	for _, deltas := range []int{1, 2, 64} {
		b.Run(fmt.Sprintf("deltas=%d", deltas), func(b *testing.B) {
			s := benchStack(b, deltas)
			r := s.NewReader()
			b.ReportAllocs()
			b.ResetTimer()
			locateMany(s, r, b.N)
		})
	}
}

// TestLocateAllocates: the fast path allocates nothing.
func TestLocateAllocates(t *testing.T) {
	s := benchStack(t, 2)
	r := s.NewReader()
	if n := testing.AllocsPerRun(10, func() { locateMany(s, r, 1000) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestDepth: a read of 64 deltas costs at most a tenth more than of one.
// Rounds are interleaved and the best of each counts, since other work on the
// machine only ever adds.
func TestDepth(t *testing.T) {
	if raceEnabled || testing.Short() {
		t.Skip("measures time")
	}
	one, many := benchStack(t, 1), benchStack(t, 64)
	r1, r64 := one.NewReader(), many.NewReader()
	best := func(d *time.Duration, s *Stack, r *Reader) {
		start := time.Now()
		locateMany(s, r, 200000)
		if e := time.Since(start); *d == 0 || e < *d {
			*d = e
		}
	}
	var d1, d64 time.Duration
	for range 40 {
		best(&d1, one, r1)
		best(&d64, many, r64)
	}
	t.Logf("200000 lookups: 1 delta %v, 64 deltas %v, ratio %.3f", d1, d64, float64(d64)/float64(d1))
	if float64(d64) > 1.1*float64(d1) {
		t.Errorf("64 deltas: %v, one: %v", d64, d1)
	}
}

// fullImage makes a sparse image of size bytes, all of whose 1 MiB clusters
// are there.
func fullImage(t testing.TB, size int64) image.Ref {
	t.Helper()
	h, err := format.NewHeader(2, uint64(size/image.SectorSize), 2048)
	if err != nil {
		t.Fatal(err)
	}
	img := make([]byte, h.DataStart()*image.SectorSize)
	copy(img, h.Encode())
	for i := range h.Clusters() {
		v, _ := h.EntryOf(h.SectorAt(i))
		binary.LittleEndian.PutUint32(img[format.HeaderSize+4*i:], v)
	}
	path := filepath.Join(memDir(t), "full")
	if err := os.WriteFile(path, img, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(h.SectorAt(h.Clusters()))*image.SectorSize); err != nil {
		t.Skip(err) // a file system without files of this size
	}
	return image.Ref{Path: path}
}

// residentMemory of this process, in bytes.
func residentMemory(t testing.TB) int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	var size, rss int64
	fmt.Sscan(string(b), &size, &rss)
	return rss * int64(os.Getpagesize())
}

// TestLargeImage opens 16 TiB with clusters of 1 MiB, all of them there: that
// takes eight bytes a cluster, and how long is logged.
func TestLargeImage(t *testing.T) {
	if raceEnabled {
		t.Skip("measures time and memory")
	}
	const clusters = 16 << 20
	ref := fullImage(t, clusters<<20)
	f, err := os.Open(ref.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var reads, opens []time.Duration
	buf := make([]byte, 1<<20)
	before := residentMemory(t)
	var s *Stack
	for range 3 {
		start := time.Now()
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.NewSectionReader(f, 0, format.HeaderSize+4*clusters)}, buf); err != nil {
			t.Fatal(err)
		}
		reads = append(reads, time.Since(start))
		if s != nil {
			s.Close()
		}
		start = time.Now()
		if s, err = Open([]image.Ref{ref}, Options{ReadOnly: true}); err != nil {
			t.Fatal(err)
		}
		opens = append(opens, time.Since(start))
	}
	s.Close()
	s = nil
	debug.FreeOSMemory()
	time.Sleep(50 * time.Millisecond) // for the cleanups
	base := residentMemory(t)
	if s, err = Open([]image.Ref{ref}, Options{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	debug.FreeOSMemory()
	per := float64(residentMemory(t)-base) / clusters
	t.Logf("reading the BAT (cached) %v, opening %v; %.2f bytes a cluster (at first %d MiB, now %d)",
		slices.Min(reads), slices.Min(opens), per, before>>20, residentMemory(t)>>20)
	if per > 8.6 { // 8 and what else the process does meanwhile
		t.Errorf("%.2f bytes a cluster", per)
	}
}
