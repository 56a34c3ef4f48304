package device

import (
	"golang.org/x/sys/unix"

	"holdfast/ploop/stack"
	"holdfast/ublk"
)

// Flushes on the ring.
//
// The stack has one sync of its top's file under way at a time (ploop.FlushBegin). The
// request that leads does it on its queue's ring; one that has to wait leaves the thread
// alone until it is woken, by whichever thread or goroutine, through its queue's mailbox. It
// counts as under way meanwhile, with the epoch in which it began.

// flush is a tag's place in the line.
type flush struct {
	stack.FlushWaiter
	r *ublk.Request
}

// newFlushes are the places of a queue's tags, so that a flush allocates nothing.
func newFlushes(depth int) []flush {
	list := make([]flush, depth)
	for i := range list {
		f := &list[i]
		f.Wake = f.wake
	}
	return list
}

// What a wait came to is kept in Request.User: the state, and behind it the errno.
const flushStateBits = 8

// wake brings the request back to its queue's thread.
func (f *flush) wake(state stack.FlushState, err error) {
	rest := uint64(state)
	if err != nil {
		rest |= uint64(errnoOf(err)) << flushStateBits
	}
	f.r.User |= rest << (stateBits + epochBits)
	f.r.Requeue()
}

// flushes are the requests for a flush, and what they wait for.
type flushes struct{ *Device }

// sync makes the top's file durable, for a FLUSH or a write that has ended.
func (d flushes) sync(r *ublk.Request, q *queue) {
	f := &q.flushes[r.Tag()]
	f.r = r
	r.User = q.mark(stateInLine, 0) // before others may wake it
	q.out++
	if state := q.stack.FlushBegin(&f.FlushWaiter); state != stack.FlushWait {
		q.out--
		d.flushed(r, q, state, 0)
	}
}

// woken ends a request's wait, on its queue's thread.
func (d flushes) woken(r *ublk.Request, q *queue) {
	rest := r.User >> (stateBits + epochBits)
	state, errno := stack.FlushState(rest&(1<<flushStateBits-1)), unix.Errno(rest>>flushStateBits)
	if epoch := r.User >> stateBits & epochMask; epoch != q.epoch {
		if state == stack.FlushLead {
			q.late.of[epoch].stack.FlushPass(&q.flushes[r.Tag()].FlushWaiter)
		}
		d.epochs.beginsAnew(r, q)
		return
	}
	q.out--
	d.flushed(r, q, state, errno)
}

// synced takes the end of a sync on the ring.
func (d flushes) synced(r *ublk.Request, q *queue, errno unix.Errno) {
	state, err := q.stack.FlushEnd(&q.flushes[r.Tag()].FlushWaiter, errorOf(errno))
	d.flushed(r, q, state, errnoOf(err))
}

// flushed goes on with a request whose turn has come, or whose flush has ended.
func (d flushes) flushed(r *ublk.Request, q *queue, state stack.FlushState, errno unix.Errno) {
	switch state {
	case stack.FlushLead:
		r.User = q.mark(stateSync, 0)
		q.out++
		r.SyncFile(q.stack.Top())
	case stack.FlushDone:
		q.complete(r, 0)
	case stack.FlushMore:
		// The stack's own flush mends what an earlier sync lost.
		d.slow.slowly(r, q, flushing)
	case stack.FlushFailed:
		d.fast.failed(r, q, failedTransfer{g: q.gen, level: q.stack.Top(), sync: true, errno: errno})
	default: // the stack is being replaced
		r.User = stateAgain
		r.Requeue()
	}
}

// errorOf is errnoOf's other way.
func errorOf(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
