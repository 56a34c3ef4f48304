package ublk

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/ublk/uring"
)

// maxRetries bounds how often a transfer that makes no progress is tried again
// after EAGAIN or EINTR.
const maxRetries = 1000

// directUnit is what transfers of files opened with O_DIRECT are counted in at
// least: one that came back short goes on from the last multiple.
const directUnit = 512

type transferKind uint8

const (
	transferRead transferKind = iota
	transferWrite
	transferSync
)

// transfer is the state of a request's movement on the ring.
type transfer struct {
	kind    transferKind
	bounced bool // by way of the device's spare buffer
	flags   uint32
	slot    int32
	change  uint32 // Queue.changes of the slot when it began
	retries int32
	pos     int   // where in the request it begins
	n       int   // how many bytes
	off     int64 // where in the file
	done    int   // where the operation in flight began, from pos
	high    int   // how far it ever came
}

// ReadFile starts to read all of a READ's bytes from offset off of the file in a
// slot of the registered table. Queue's thread. A file that ends before them is
// EIO.
func (r *Request) ReadFile(slot int, off int64) { r.ReadFileRange(slot, off, 0, r.n) }

// WriteFile starts to write all of a WRITE's bytes to offset off of the file in a
// slot. Queue's thread. rwFlags are those of pwritev2(2), RWF_DSYNC for a WRITE
// with FUA.
func (r *Request) WriteFile(slot int, off int64, rwFlags uint32) {
	r.WriteFileRange(slot, off, 0, r.n, rwFlags)
}

// ReadFileRange is ReadFile for n bytes from pos of the request.
func (r *Request) ReadFileRange(slot int, off int64, pos, n int) {
	r.checkRange(OpRead, pos, n)
	r.transfer = transfer{kind: transferRead, slot: int32(slot), off: off, pos: pos, n: n}
	r.queue.start(r)
}

// WriteFileRange is WriteFile for n bytes from pos of the request.
func (r *Request) WriteFileRange(slot int, off int64, pos, n int, rwFlags uint32) {
	r.checkRange(OpWrite, pos, n)
	r.transfer = transfer{kind: transferWrite, slot: int32(slot), off: off, pos: pos, n: n, flags: rwFlags}
	r.queue.start(r)
}

func (r *Request) checkRange(op Op, pos, n int) {
	if r.op != op || pos < 0 || n < 1 || n > r.n-pos {
		panic(fmt.Sprintf("ublk: transfer of bytes %d to %d of %v, wanted for a %v", pos, pos+n, r, op))
	}
}

// SyncFile starts an fdatasync of the file in a slot. Queue's thread, any operation.
func (r *Request) SyncFile(slot int) {
	r.transfer = transfer{kind: transferSync, slot: int32(slot)}
	r.queue.start(r)
}

// start puts a transfer on the ring.
func (q *Queue) start(r *Request) {
	r.must(ownedByHandler, "start a transfer")
	r.owner = ownedByRing
	r.transfer.change = q.change(r.transfer.slot)
	if r.flags&ioFlagNeedRegBuf != 0 && r.transfer.kind != transferSync {
		q.bounce(r)
		return
	}
	q.submit(r)
}

// change tells one file of a slot from the next.
func (q *Queue) change(slot int32) uint32 {
	if int(slot) < len(q.changes) {
		return q.changes[slot]
	}
	return 0
}

func (q *Queue) submit(r *Request) {
	t := &r.transfer
	if t.change != q.change(t.slot) {
		q.finish(r, unix.ESTALE) // see SetFile
		return
	}
	s := q.sqe()
	s.UserData = uint64(r.tag) | kindTransfer
	pos := t.pos + t.done
	n, off := t.n-t.done, t.off+int64(t.done)
	switch {
	case t.kind == transferSync:
		s.PrepFsync(int(t.slot), true)
	case t.bounced || !q.zeroCopy:
		addr := q.dev.spare.at()
		if t.bounced {
			pos -= t.pos // the spare buffer holds the transfer, not the request
		} else {
			addr = q.buffer(int(r.tag))
		}
		if t.kind == transferRead {
			s.PrepRead(int(t.slot), unsafe.Add(addr, pos), n, off)
		} else {
			s.PrepWrite(int(t.slot), unsafe.Add(addr, pos), n, off, t.flags)
		}
	case t.kind == transferRead:
		s.PrepReadFixed(int(t.slot), r.tag, uint64(pos), n, off)
	default:
		s.PrepWriteFixed(int(t.slot), r.tag, uint64(pos), n, off, t.flags)
	}
	s.Flags = fixedFile
	if q.blocking(t.slot) {
		s.Flags |= uring.Async
	}
}

// transferred takes the result of what submit sent.
func (q *Queue) transferred(r *Request, res int32) {
	t := &r.transfer
	if res < 0 {
		errno := unix.Errno(-res)
		again := errno == unix.EINTR || errno == unix.EAGAIN && (t.kind == transferSync || !q.blocking(t.slot)) // see oneAttempt
		if again && t.retries < maxRetries {
			t.retries++
			q.submit(r)
			return
		}
		q.finish(r, errno)
		return
	}
	if t.kind == transferSync {
		q.finish(r, 0)
		return
	}
	if came := t.done + int(res); came < t.n {
		q.short(r, came)
		return
	}
	q.finish(r, 0)
}

// short goes on with a transfer of which fewer bytes came than were asked for. A file
// opened with O_DIRECT refuses an odd offset, so the part of a unit that was
// moved is moved again; where that brings nothing more, the file ends.
func (q *Queue) short(r *Request, came int) {
	t := &r.transfer
	if came > t.high {
		t.high = came
		t.done = came &^ (directUnit - 1)
		t.retries = 0
		q.submit(r)
		return
	}
	// The file ends where it should not, or a write wrote nothing and says
	// nothing. Zeroes in place of what was lost would go unnoticed.
	q.finish(r, unix.EIO)
}

// finish gives the request back to the handler.
func (q *Queue) finish(r *Request, errno unix.Errno) {
	if r.transfer.bounced {
		errno = q.unbounce(r, errno)
	}
	r.owner = ownedByHandler
	q.handler.Transferred(r, errno)
}
