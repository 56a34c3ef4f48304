package ublk

import (
	"bytes"
	"crypto/rand"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/ublk/uring"
)

// A queue without a driver: /dev/null accepts any io_uring command and answers it
// with 0 at once, which is how the driver announces a request. What the request
// is the test writes to the descriptors. So the queue's loop, the mailbox and
// transfers run on the machine's own kernel, on the copy path.
type fakeQueue struct {
	*Queue
	t    testing.TB
	next func(tag int, d *ioDesc) bool // the next request of a tag; false: none, ever
	h    Handler
	done chan struct{}
}

// Begin stands between the queue and the test's handler, at the place of the driver.
func (f *fakeQueue) Begin(r *Request) {
	if r.flags&fakeAgain == 0 {
		d := (*ioDesc)(unsafe.Add(f.descs, int(r.tag)*int(unsafe.Sizeof(ioDesc{}))))
		if !f.next(int(r.tag), d) {
			f.gone++
			return
		}
		d.opFlags |= fakeAgain // for a Requeue
		r.flags, r.op, r.off, r.n = d.opFlags, Op(d.opFlags), int64(d.startSector)<<9, int(d.nrSectors)<<9
		d.opFlags = uint32(OpFlush) // what fetched will see of the next
	}
	f.h.Begin(r)
}

const fakeAgain = 1 << 31

func (f *fakeQueue) Transferred(r *Request, errno unix.Errno) { f.h.Transferred(r, errno) }

// startFake runs a queue of the given depth on a thread of its own.
func startFake(t testing.TB, depth, maxIO int, files []*os.File, h Handler, next func(tag int, d *ioDesc) bool) *fakeQueue {
	t.Helper()
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &Device{ended: make(chan struct{}), info: Info{Depth: depth, MaxIO: maxIO, Queues: 1}}
	d.running.Store(1)
	f := &fakeQueue{t: t, next: next, h: h, done: d.ended}
	f.Queue = &Queue{dev: d, fd: null, maxIO: maxIO, handler: f, allowed: 1 << OpFlush, requests: make([]Request, depth)}
	d.queues = []*Queue{f.Queue}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer d.queueEnded()
		q := f.Queue
		ready <- func() error {
			descs, err := mapMemory(roundUp(depth*int(unsafe.Sizeof(ioDesc{})), os.Getpagesize()), 0)
			if err != nil {
				return err
			}
			for i := range depth {
				(*ioDesc)(unsafe.Pointer(&descs[i*int(unsafe.Sizeof(ioDesc{}))])).opFlags = uint32(OpFlush)
			}
			q.descMem, q.descs = descs, unsafe.Pointer(&descs[0])
			if q.mem, err = mapMemory(depth*maxIO, unix.MAP_NORESERVE); err != nil {
				return err
			}
			q.buffers = unsafe.Pointer(&q.mem[0])
			if err := q.openMailbox(); err != nil {
				return err
			}
			if err := q.openRing(); err != nil {
				return err
			}
			if len(files) > 0 {
				if err := q.ring.RegisterFilesSparse(len(files)); err != nil {
					return err
				}
			}
			for i, file := range files {
				if err := q.ring.UpdateFile(i, int(file.Fd())); err != nil {
					return err
				}
			}
			for tag := range q.requests {
				r := &q.requests[tag]
				r.queue, r.tag = q, uint16(tag)
				q.command(r, ioFetchReq, 0)
			}
			return nil
		}()
		if q.ring != nil {
			q.loop()
			q.closeMailbox()
		}
		q.release()
	}()
	if err := <-ready; err != nil {
		if strings.Contains(err.Error(), uring.ErrDisabled.Error()) || strings.Contains(err.Error(), uring.ErrUnsupported.Error()) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	return f
}

func (f *fakeQueue) wait() {
	f.t.Helper()
	select {
	case <-f.done:
	case <-time.After(30 * time.Second):
		f.t.Fatal("the queue has not ended")
	}
	if errs := f.dev.lastErrs; errs != nil {
		f.t.Fatal(errs)
	}
	unix.Close(f.fd)
}

// funcHandler is a Handler of two functions.
type funcHandler struct {
	begin       func(r *Request)
	transferred func(r *Request, errno unix.Errno)
}

func (h funcHandler) Begin(r *Request)                         { h.begin(r) }
func (h funcHandler) Transferred(r *Request, errno unix.Errno) { h.transferred(r, errno) }

// times makes a source of n requests like d, over all tags.
func times(n int, d ioDesc) func(int, *ioDesc) bool {
	return func(_ int, out *ioDesc) bool {
		n--
		*out = d
		return n >= 0
	}
}

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

func TestTransfersMoveTheBytes(t *testing.T) {
	const block, blocks = 8192, 64
	data := make([]byte, block*blocks)
	rand.Read(data)
	in, out := backing(t, 0, 0), backing(t, 0, 0)
	if _, err := in.Write(data); err != nil {
		t.Fatal(err)
	}
	// Every tag reads a block of the first file, as a READ, keeps it in a WRITE's
	// buffer and writes it to the second.
	next := 0
	h := funcHandler{
		begin: func(r *Request) {
			if r.Op() == OpRead {
				r.ReadFile(0, r.Offset())
				return
			}
			r.WriteFileRange(1, r.Offset(), 0, block/2, 0)
		},
		transferred: func(r *Request, errno unix.Errno) {
			if errno != 0 {
				t.Errorf("%v: %v", r, errno)
			}
			if r.Op() == OpWrite {
				r.User++
				switch r.User {
				case 1:
					r.WriteFileRange(1, r.Offset()+block/2, block/2, block/2, unix.RWF_DSYNC)
					return
				case 2:
					r.SyncFile(1)
					return
				}
			}
			r.CompleteHere(errno)
		},
	}
	last := make(map[int]uint64)
	f := startFake(t, 8, block, []*os.File{in, out}, h, func(tag int, d *ioDesc) bool {
		if at, ok := last[tag]; ok { // now write what was read
			delete(last, tag)
			*d = ioDesc{opFlags: uint32(OpWrite), startSector: at, nrSectors: block / 512}
			return true
		}
		if next == blocks {
			return false
		}
		last[tag] = uint64(next * block / 512)
		next++
		*d = ioDesc{opFlags: uint32(OpRead), startSector: last[tag], nrSectors: block / 512}
		return true
	})
	f.wait()
	got, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("the copy differs")
	}
}

// A file that ends before a read does has lost something; one that ends later is read.
func TestReadPastTheEndFails(t *testing.T) {
	for _, flags := range []int{0, unix.O_DIRECT} {
		for _, size := range []int{0, 100, 511, 512, 4096, 5000, 8191, 8192, 9000} {
			f := backing(t, 0, 0)
			want := make([]byte, size)
			rand.Read(want)
			f.Write(want)
			if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, flags); err != nil {
				t.Skipf("no O_DIRECT here: %v", err)
			}
			var wantErrno unix.Errno
			if size < 8192 {
				wantErrno = unix.EIO
			}
			h := funcHandler{
				begin: func(r *Request) {
					for i := range r.Buffer() {
						r.Buffer()[i] = 0xee
					}
					r.ReadFile(0, 0)
				},
				transferred: func(r *Request, errno unix.Errno) {
					n := min(size, 8192)
					if errno != wantErrno || errno == 0 && !bytes.Equal(r.Buffer()[:n], want[:n]) {
						t.Errorf("a file of %d bytes, flags %#x: %v, want %v, or other bytes than expected", size, flags, errno, wantErrno)
					}
					r.CompleteHere(errno)
				},
			}
			startFake(t, 1, 8192, []*os.File{f}, h, times(1, ioDesc{opFlags: uint32(OpRead), nrSectors: 16})).wait()
		}
	}
}

func TestTransferErrors(t *testing.T) {
	ro, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for slot, want := range []unix.Errno{unix.EBADF, unix.ENOSPC, unix.EBADF} {
		var got unix.Errno
		h := funcHandler{
			begin:       func(r *Request) { r.WriteFile(slot, 0, 0) },
			transferred: func(r *Request, errno unix.Errno) { got = errno; r.CompleteHere(errno) },
		}
		startFake(t, 1, 4096, []*os.File{ro, full}, h, times(1, ioDesc{opFlags: uint32(OpWrite), nrSectors: 8})).wait()
		if got != want {
			t.Errorf("slot %d: %v, want %v", slot, got, want)
		}
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

// A transfer that came short after its slot was given another file must not go on there:
// its place is one in the file that it began with.
func TestNoTransferGoesOnInAnotherFile(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	other := backing(t, 0, 0)
	if _, err := other.Write(make([]byte, 8192)); err != nil {
		t.Fatal(err)
	}
	var got unix.Errno
	begun := make(chan struct{})
	h := funcHandler{
		begin:       func(r *Request) { r.ReadFile(0, 0); close(begun) },
		transferred: func(r *Request, errno unix.Errno) { got = errno; r.CompleteHere(errno) },
	}
	f := startFake(t, 1, 8192, []*os.File{r}, h, times(1, ioDesc{opFlags: uint32(OpRead), nrSectors: 16}))
	f.dev.cfg.Files = 1
	<-begun
	if err := f.dev.OnQueues(func(*Queue) {}); err != nil { // under way by the next
		t.Fatal(err)
	}
	if err := f.dev.SetFile(0, int(other.Fd())); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	f.wait()
	if got != unix.ESTALE {
		t.Errorf("a transfer that came short, of a file that was replaced: %v, want ESTALE", got)
	}
}
