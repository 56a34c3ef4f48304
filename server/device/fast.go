package device

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/internal/failpoint"
	"holdfast/ploop/stack"
	"holdfast/standby"
	"holdfast/ublk"
)

// queue is what one queue's thread has for itself.
type queue struct {
	gen    *generation
	stack  *stack.Stack // gen's
	reader *stack.Reader
	epoch  uint64 // see epochs.go
	out    int    // transfers on the ring, of this epoch
	// through: writes are made durable before they are acknowledged.
	through bool
	held    []*ublk.Request
	spare   []*ublk.Request
	late    lateTransfers
	flushes []flush // by tag
	born    time.Time
	jobs    []job         // by tag: the slow way's
	began   []int64       // by tag: when a sampled request came, in ns since born
	came    []uint32      // by tag: when its request came, by the coarse clock
	erred   []bool        // by tag: its request met an error already, and is done again
	slow    []whereabouts // by tag
	inquiry inquiry[survey]
	stats   stats
}

// stats are counted on the queue's thread, except where slow requests end.
type stats struct {
	ops     [6]atomic.Uint64 // by ublk.Op
	bytes   [6]atomic.Uint64 // of READ, WRITE and of discarded and zeroed ranges
	ended   atomic.Uint64
	errors  atomic.Uint64
	slow    atomic.Uint64
	held    atomic.Int64 // now
	holds   atomic.Uint64
	heldEIO atomic.Uint64 // held requests that failed
	latency [6]histogram  // by ublk.Op
	_       [64]byte      // the neighbour's counters are on another cache line
}

// Request.User says what a request is in the middle of, so that nothing is
// allocated: 0 for one that has just come, else a state, the epoch in which its
// transfer began, and its place (see placeOf) or what a wait for a sync came to.
const (
	stateTransfer = iota + 1 // READ or WRITE between pages and file
	stateThenSync            // the same, and a sync has to follow (FUA)
	stateSync                // the sync of a FLUSH or of a FUA write
	stateAgain               // none: it begins anew
	stateDurable             // a WRITE that is durable when it has ended (RWF_DSYNC)
	stateInLine              // it waits for a sync that others share; see flush.go

	stateBits = 3
	epochBits = 16
	stateMask = 1<<stateBits - 1
	epochMask = 1<<epochBits - 1
)

func (q *queue) mark(state, rest uint64) uint64 {
	return state | q.epoch<<stateBits | rest<<(stateBits+epochBits)
}

// placeOf is what is remembered of a place: the token, and the level for messages.
func placeOf(at stack.Place) uint64 { return uint64(at.Token) | uint64(at.Level)<<32 }

// fastPath is the way of requests on the queues' threads.
type fastPath struct{ *Device }

var _ ublk.Handler = fastPath{}

// Begin takes a request from the driver, or one that was held or has to be done
// anew. It runs on the queue's thread.
func (d fastPath) Begin(r *ublk.Request) {
	q := &d.queues[r.Queue().Index()]
	op := r.Op()
	if r.User == 0 {
		failpoint.Hit("fetch")
		q.came[r.Tag()], q.erred[r.Tag()] = coarse.seconds.Load(), false
		q.stats.bytes[op].Add(uint64(r.Len()))
		if n := q.stats.ops[op].Add(1); n%api.LatencySample == 1 {
			q.began[r.Tag()] = max(int64(time.Since(q.born)), 1)
		}
	}
	if r.User&stateMask == stateInLine {
		d.flushes.woken(r, q)
		return
	}
	if d.gate.Closed() && d.hold(r, q) {
		return
	}
	switch op {
	case ublk.OpRead:
		at := q.reader.Locate(r.Offset(), r.Len(), false)
		switch at.Where {
		case stack.Direct:
			r.User = q.mark(stateTransfer, placeOf(at))
			q.out++
			r.ReadFile(at.Level, at.Offset)
			return
		case stack.Zero:
			q.complete(r, r.ZeroFill())
			return
		}
	case ublk.OpWrite:
		at := q.reader.Locate(r.Offset(), r.Len(), true)
		if at.Where == stack.Direct {
			state, flags := uint64(stateTransfer), uint32(0)
			if r.FUA() || q.through {
				// With nothing else to make durable, the write alone is enough. Through the page
				// cache it isn't: of several writes at a time the storage tells only one that
				// data was lost, as of several syncs.
				if q.stack.IndexDirty() || q.stack.TopCached() {
					state = stateThenSync
				} else {
					state, flags = stateDurable, unix.RWF_DSYNC
				}
			}
			r.User = q.mark(state, placeOf(at))
			q.out++
			r.WriteFile(at.Level, at.Offset, flags)
			return
		}
	case ublk.OpFlush:
		if q.stack.ReadOnly() {
			q.complete(r, 0)
			return
		}
		d.flushes.sync(r, q)
		return
	}
	d.slow.slowly(r, q, classOf(op))
}

func classOf(op ublk.Op) class {
	switch op {
	case ublk.OpRead:
		return reading
	case ublk.OpFlush:
		return flushing
	}
	return changing
}

// makeTags makes what there is of each tag.
func (q *queue) makeTags(depth int) {
	q.flushes = newFlushes(depth)
	q.began, q.came = make([]int64, depth), make([]uint32, depth)
	q.jobs, q.slow, q.erred = make([]job, depth), make([]whereabouts, depth), make([]bool, depth)
	q.held, q.spare = make([]*ublk.Request, 0, depth), make([]*ublk.Request, 0, depth)
}

// ended counts a request. Whoever completes it owns its tag's time as well.
func (q *queue) ended(tag int, op ublk.Op) {
	q.stats.ended.Add(1)
	if t := q.began[tag]; t != 0 {
		q.began[tag] = 0
		q.stats.latency[op].add(time.Since(q.born) - time.Duration(t))
	}
}

// complete ends a request on the queue's thread.
func (q *queue) complete(r *ublk.Request, errno unix.Errno) {
	q.ended(r.Tag(), r.Op())
	failpoint.Hit("commit")
	r.CompleteHere(errno)
}

// Transferred takes the end of a transfer. It runs on the queue's thread.
func (d fastPath) Transferred(r *ublk.Request, errno unix.Errno) {
	q := &d.queues[r.Queue().Index()]
	state, rest := r.User&stateMask, r.User>>(stateBits+epochBits)
	if epoch := r.User >> stateBits & epochMask; epoch != q.epoch {
		d.epochs.cameLate(r, q, state, rest, epoch, errno)
		return
	}
	q.out--
	if state == stateSync {
		d.flushes.synced(r, q, errno)
		return
	}
	q.reader.Leave(uint32(rest))
	switch {
	case errno == 0 && (state == stateThenSync || q.through && state == stateTransfer && r.Op() == ublk.OpWrite):
		d.flushes.sync(r, q) // the latter began before writes were to go through
	case errno == 0:
		q.complete(r, 0)
	case errno == unix.EINVAL || errno == unix.EAGAIN || noSpace(errno):
		// The file system wants an alignment that this request lacks, or
		// can't do it without waiting, or has no space.
		d.slow.slowly(r, q, classOf(r.Op()))
	default:
		d.failed(r, q, failedTransfer{g: q.gen, level: int(rest >> 32), errno: errno})
	}
}

// failed has a worker decide about a request whose transfer failed: that is rare, and worth a
// look and a line.
func (d fastPath) failed(r *ublk.Request, q *queue, f failedTransfer) {
	q.stats.slow.Add(1)
	if !f.sync {
		f.len = int64(r.Len())
		_, f.off = r.Transfer()
	}
	r.User = stateAgain
	j := d.slow.job(r, q, judging)
	j.failed = f
	d.slow.submit(j)
}

// hold keeps a request that meets a closed gate, or fails it; false says that the
// gate has opened meanwhile. It runs on the queue's thread.
func (d fastPath) hold(r *ublk.Request, q *queue) bool {
	v := d.gate.Verdict()
	if v != standby.Pass && d.ending.Load() {
		v = standby.Fail
	}
	switch v {
	case standby.Pass:
		return false
	case standby.Hold:
		r.User = stateAgain | d.failures.Load()<<stateBits
		q.held = append(q.held, r) // within its capacity: there are as many tags
		q.stats.held.Add(1)
		q.stats.holds.Add(1)
	case standby.Fail:
		q.fail(r)
	}
	return true
}

func (q *queue) fail(r *ublk.Request) {
	q.stats.errors.Add(1)
	q.complete(r, unix.EIO)
}

// release ends the hold of the requests that this queue keeps: they begin anew, or,
// those held before the failure of that number, fail. It runs on the queue's thread.
func (d fastPath) release(q *queue, failure uint64) {
	held := q.held
	q.held, q.spare = q.spare[:0], held // Begin may hold some of them again
	q.stats.held.Add(-int64(len(held)))
	for _, r := range held {
		if r.User>>stateBits < failure {
			q.stats.heldEIO.Add(1)
			q.fail(r)
		} else {
			d.Begin(r)
		}
	}
}

// releaseHeld has every queue release what it holds, soon. What meets the closed gate
// before that is released too: both happen on the queue's thread, and the gate was
// opened first. By then it may have closed once more, and what it holds since is not to
// fail: failures are numbered.
func (d fastPath) releaseHeld(fail bool) {
	failure := uint64(0)
	if fail {
		failure = d.failures.Add(1)
	}
	for _, uq := range d.dev.Queues() {
		q := &d.queues[uq.Index()]
		_ = uq.Post(func() { d.release(q, failure) }) // an ended queue holds nothing
	}
}
