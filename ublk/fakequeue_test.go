package ublk

import (
	"os"
	"runtime"
	"strings"
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

var _ Handler = (*fakeQueue)(nil)

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

var _ Handler = funcHandler{}

func (h funcHandler) Begin(r *Request) { h.begin(r) }

func (h funcHandler) Transferred(r *Request, errno unix.Errno) { h.transferred(r, errno) }

// times makes a source of n requests like d, over all tags.
func times(n int, d ioDesc) func(int, *ioDesc) bool {
	return func(_ int, out *ioDesc) bool {
		n--
		*out = d
		return n >= 0
	}
}
