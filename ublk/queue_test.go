package ublk

import (
	"os"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func TestQueueCompletesHereAndElsewhere(t *testing.T) {
	const n = 20000
	var begun, again atomic.Int64
	h := funcHandler{begin: func(r *Request) {
		begun.Add(1)
		switch begun.Load() % 4 {
		case 0:
			r.CompleteHere(0)
		case 1:
			r.Complete(0) // allowed here too
		case 2:
			go r.Complete(0)
		default:
			if r.User == 0 {
				r.User = 77
				go r.Requeue()
				return
			}
			if r.User != 77 {
				t.Errorf("User is %d after Requeue", r.User)
			}
			again.Add(1)
			go r.Complete(0)
		}
	}}
	f := startFake(t, 64, 4096, nil, h, times(n, ioDesc{opFlags: uint32(OpFlush)}))
	f.wait()
	if begun.Load() < n || again.Load() == 0 {
		t.Fatalf("%d requests begun of %d, %d again", begun.Load(), n, again.Load())
	}
	if f.dev.Stats().Wakeups == 0 {
		t.Fatal("the queue never slept")
	}
}

func TestPostAndGracePeriod(t *testing.T) {
	release := make(chan struct{})
	var held atomic.Pointer[Request]
	h := funcHandler{begin: func(r *Request) { held.Store(r); close(release) }}
	f := startFake(t, 1, 4096, nil, h, times(1, ioDesc{opFlags: uint32(OpFlush)}))
	<-release
	n := 0
	for range 1000 {
		if err := f.dev.OnQueues(func(*Queue) { n++ }); err != nil {
			t.Fatal(err)
		}
	}
	if n != 1000 {
		t.Fatalf("%d functions run", n)
	}
	held.Load().Complete(0)
	f.wait()
	if err := f.dev.OnQueues(func(*Queue) { t.Error("run after the end") }); err != ErrStopped {
		t.Fatalf("after the end: %v", err)
	}
}

func TestBugsPanic(t *testing.T) {
	q := &Queue{dev: &Device{}, requests: make([]Request, 1)}
	q.sleeping.Store(false)
	r := &q.requests[0]
	r.queue = q
	expect := func(what string, fn func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", what)
			}
		}()
		fn()
	}
	r.op, r.n = OpRead, 4096
	expect("complete what the driver owns", func() { r.CompleteHere(0) })
	expect("transfer what the driver owns", func() { r.ReadFile(0, 0) })
	expect("a write for a read", func() { r.WriteFile(0, 0, 0) })
	expect("a transfer beyond the request", func() { r.ReadFileRange(0, 0, 512, 4096) })
	r.owner = ownedByHandler
	r.Complete(0)
	expect("complete twice", func() { r.Complete(0) })
}

func TestQueueAllocatesNothing(t *testing.T) {
	const n = 100_000
	f := backing(t, 1<<20, 0)
	h := funcHandler{
		begin:       func(r *Request) { r.ReadFile(0, r.Offset()) },
		transferred: func(r *Request, errno unix.Errno) { r.CompleteHere(errno) },
	}
	var before, after runtime.MemStats
	left := n
	q := startFake(t, 32, 4096, []*os.File{f}, h, func(_ int, d *ioDesc) bool {
		switch left {
		case n - 1000: // the start is over
			runtime.ReadMemStats(&before)
		case 0:
			runtime.ReadMemStats(&after)
		}
		left--
		*d = ioDesc{opFlags: uint32(OpRead), nrSectors: 8, startSector: uint64(left%256) * 8}
		return left >= 0
	})
	q.wait()
	// Some are the test binary's own (a timer of wait).
	if got := after.Mallocs - before.Mallocs; got > 100 {
		t.Fatalf("%d allocations for %d requests", got, n-1000)
	}
}

func benchmarkQueue(b *testing.B, depth int, files []*os.File, h Handler, d ioDesc) {
	b.ReportAllocs()
	b.ResetTimer()
	startFake(b, depth, 4096, files, h, times(b.N, d)).wait()
}

func BenchmarkQueueNull(b *testing.B) {
	h := funcHandler{begin: func(r *Request) { r.CompleteHere(0) }}
	benchmarkQueue(b, 32, nil, h, ioDesc{opFlags: uint32(OpFlush)})
}

func BenchmarkQueueGoroutine(b *testing.B) {
	h := funcHandler{begin: func(r *Request) { go r.Complete(0) }}
	benchmarkQueue(b, 32, nil, h, ioDesc{opFlags: uint32(OpFlush)})
}

func BenchmarkQueueRead4k(b *testing.B) {
	f := backing(b, 1<<20, 0)
	h := funcHandler{
		begin:       func(r *Request) { r.ReadFile(0, r.Offset()) },
		transferred: func(r *Request, errno unix.Errno) { r.CompleteHere(errno) },
	}
	benchmarkQueue(b, 32, []*os.File{f}, h, ioDesc{opFlags: uint32(OpRead), nrSectors: 8})
}
