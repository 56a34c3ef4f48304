package device

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
	"holdfast/ublk"
)

// queue is what one queue's thread has for itself.
type queue struct {
	reader *ploop.Reader
	stats  stats
}

// stats are counted on the queue's thread, except where slow requests end.
type stats struct {
	ops     [6]atomic.Uint64 // by ublk.Op
	bytes   [6]atomic.Uint64 // of READ, WRITE and of discarded and zeroed ranges
	ended   atomic.Uint64
	errors  atomic.Uint64
	slow    atomic.Uint64
	latency [6]histogram // by ublk.Op
	_       [64]byte     // the neighbour's counters are on another cache line
}

// A fast request is in one of these states between its transfers. The state,
// the place's token and a number of the flush fit Request.User, so nothing is
// allocated.
const (
	stateTransfer = iota + 1 // READ or WRITE between pages and file
	stateThenSync            // the same, and a sync has to follow (FUA)
	stateSync                // the sync of a FLUSH or of a FUA write
	stateBits     = 2
)

// Begin takes a request from the driver. It runs on the queue's thread.
func (d *Device) Begin(r *ublk.Request) {
	q := &d.queues[r.Queue().Index()]
	op := r.Op()
	q.stats.ops[op].Add(1)
	q.stats.bytes[op].Add(uint64(r.Len()))
	switch op {
	case ublk.OpRead:
		at := q.reader.Locate(r.Offset(), r.Len(), false)
		switch at.Where {
		case ploop.Direct:
			r.User = stateTransfer | uint64(at.Token)<<stateBits
			r.ReadFile(at.Level, at.Offset)
			return
		case ploop.Zero:
			q.complete(r, r.ZeroFill())
			return
		}
	case ublk.OpWrite:
		at := q.reader.Locate(r.Offset(), r.Len(), true)
		if at.Where == ploop.Direct {
			state, flags := uint64(stateTransfer), uint32(0)
			if r.FUA() {
				// With nothing else to make durable, the write alone is enough.
				if d.stack.IndexDirty() {
					state = stateThenSync
				} else {
					flags = unix.RWF_DSYNC
				}
			}
			r.User = state | uint64(at.Token)<<stateBits
			r.WriteFile(at.Level, at.Offset, flags)
			return
		}
	case ublk.OpFlush:
		if d.stack.ReadOnly() {
			q.complete(r, 0)
			return
		}
		d.sync(r)
		return
	}
	q.stats.slow.Add(1)
	go d.serve(r, q)
}

// complete ends a request on the queue's thread.
func (q *queue) complete(r *ublk.Request, errno unix.Errno) {
	q.stats.ended.Add(1)
	r.CompleteHere(errno)
}

// sync makes the top's file durable, on the ring.
func (d *Device) sync(r *ublk.Request) {
	r.User = stateSync | d.stack.FlushBegin()<<stateBits
	r.SyncFile(d.stack.Top())
}

// Transferred takes the end of a transfer. It runs on the queue's thread.
func (d *Device) Transferred(r *ublk.Request, errno unix.Errno) {
	q := &d.queues[r.Queue().Index()]
	state, rest := r.User&(1<<stateBits-1), r.User>>stateBits
	complete := true
	if state == stateSync {
		complete = d.stack.FlushEnd(rest, errno == 0)
	} else {
		q.reader.Leave(uint32(rest))
	}
	switch {
	case errno == 0 && !complete:
		// An earlier sync failed and may have lost what this one says nothing
		// of; the stack's own flush mends that first.
		q.stats.slow.Add(1)
		go d.flush(r, q)
	case errno == 0 && state == stateThenSync:
		d.sync(r)
	case errno == 0:
		q.complete(r, 0)
	default:
		// Rare, and worth a look and a line: not on this thread.
		q.stats.slow.Add(1)
		go d.failed(r, q, state, errno)
	}
}
