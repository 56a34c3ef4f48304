package ublk

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Op is what a request asks for, UBLK_IO_OP_*.
type Op uint8

// The operations. 4 (WRITE_SAME) is not sent by any kernel.
const (
	OpRead        Op = 0
	OpWrite       Op = 1
	OpFlush       Op = 2
	OpDiscard     Op = 3
	OpWriteZeroes Op = 5

	opCount = 6
)

func (op Op) String() string {
	switch op {
	case OpRead:
		return "READ"
	case OpWrite:
		return "WRITE"
	case OpFlush:
		return "FLUSH"
	case OpDiscard:
		return "DISCARD"
	case OpWriteZeroes:
		return "WRITE_ZEROES"
	}
	return fmt.Sprintf("operation %d", uint8(op))
}

// Handler serves the requests of one device. Both methods are called on a
// queue's thread and must never block.
type Handler interface {
	// Begin is called once for every request fetched from the driver, and again
	// after Requeue. The request is the handler's until it completes it or starts
	// a transfer.
	Begin(r *Request)
	// Transferred is called when the transfer that ReadFile, WriteFile or SyncFile
	// started has ended: with 0 when it was done in full, else with the errno.
	// The request is the handler's again: it completes it, starts another
	// transfer, or gives it to a goroutine.
	Transferred(r *Request, errno unix.Errno)
}

// Who owns a request. Written on the queue's thread only.
type owner uint8

const (
	ownedByDriver owner = iota
	ownedByHandler
	ownedByRing
)

// Request is one request of the block device. There is one per tag, used again and
// again: do not keep it beyond Complete.
type Request struct {
	// User is for the handler. It is 0 in Begin of a freshly fetched request and
	// then left alone until Complete.
	User uint64

	queue *Queue
	off   int64
	n     int
	flags uint32 // UBLK_IO_F_*, op in the low byte
	tag   uint16
	op    Op
	owner owner

	transfer transfer

	// The way from other goroutines to the queue's thread.
	next   *Request
	mailed atomic.Bool
	again  bool // Requeue, not Complete
	errno  unix.Errno
}

// Op is what is asked for.
func (r *Request) Op() Op { return r.op }

// FUA reports that a WRITE must be on stable storage before it is completed.
func (r *Request) FUA() bool { return r.flags&ioFlagFUA != 0 }

// NoUnmap reports that WRITE_ZEROES must keep the space allocated.
func (r *Request) NoUnmap() bool { return r.flags&ioFlagNoUnmap != 0 }

// Offset is where on the device the request begins, in bytes. A FLUSH is about the whole
// device, and its offset means nothing.
func (r *Request) Offset() int64 { return r.off }

// Len is how many bytes it covers: up to MaxIO for READ and WRITE, up to nearly
// 4 GiB for DISCARD and WRITE_ZEROES, 0 for FLUSH.
func (r *Request) Len() int { return r.n }

// Queue is the queue the request came to.
func (r *Request) Queue() *Queue { return r.queue }

// Tag is the request's number in its queue, below Depth.
func (r *Request) Tag() int { return int(r.tag) }

func (r *Request) String() string {
	if r.op == OpFlush {
		return fmt.Sprintf("%v (queue %d, tag %d)", r.op, r.queue.index, r.tag)
	}
	return fmt.Sprintf("%v of %d bytes at %d (queue %d, tag %d)", r.op, r.n, r.off, r.queue.index, r.tag)
}

// Complete ends the request: 0 says that it was done in full, anything else is the
// error the user gets. It may be called from any goroutine; on the queue's
// thread CompleteHere does the same for less.
func (r *Request) Complete(errno unix.Errno) {
	r.again = false
	r.errno = errno
	r.queue.mail(r)
}

// CompleteHere is Complete for the queue's thread: the answer leaves with the
// thread's next entry into the kernel.
func (r *Request) CompleteHere(errno unix.Errno) { r.queue.commit(r, errno) }

// Requeue brings a request that a goroutine owns back to its queue's thread, where
// Begin is called for it again, with User as it is.
func (r *Request) Requeue() {
	r.again = true
	r.queue.mail(r)
}

// Buffer is the memory of a READ's or WRITE's bytes on the copy path: a WRITE's
// are there at Begin, a READ's must be there at Complete. nil on the zero-copy
// path, and for other operations. Valid while the handler owns the request.
func (r *Request) Buffer() []byte {
	if r.queue.zeroCopy || r.op > OpWrite {
		return nil
	}
	return unsafe.Slice((*byte)(r.queue.buffer(int(r.tag))), r.n)
}

// must panics when the request is not o's.
func (r *Request) must(o owner, what string) {
	if r.owner != o {
		panic("ublk: " + what + ": not the owner of " + r.String())
	}
}

// Outstanding calls fn for every request that came from the driver and has not been answered;
// transfers says that its transfer is under way: it is then the ring's, and otherwise the
// handler's, perhaps a goroutine's, who may be writing to User. Queue's thread.
func (q *Queue) Outstanding(fn func(r *Request, transfers bool)) {
	for i := range q.requests {
		if r := &q.requests[i]; r.owner != ownedByDriver {
			fn(r, r.owner == ownedByRing)
		}
	}
}

// Transfer says where the transfer that is under way is: the file's slot, and its offset there;
// -1: the file is being synced. Queue's thread.
func (r *Request) Transfer() (slot int, off int64) {
	if r.transfer.kind == transferSync {
		return int(r.transfer.slot), -1
	}
	return int(r.transfer.slot), r.transfer.off
}
