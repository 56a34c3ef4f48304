package device

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/ploop/stack"
	"holdfast/standby"
	"holdfast/ublk"
)

// Requests and replacements.
//
// A stack is replaced while no request is processed: the gate is closed, and what
// is under way has come back. Storage that died may keep some of it for ever, so
// that wait has a bound. When it has passed, what is still out is declared late:
// whatever its result will be when it comes, it counts for nothing, and the request
// begins anew, on the new stack. Until then it keeps its tag and its pages, which
// the storage may still read or write.
//
// Transfers on the ring belong to an epoch of their queue, told by Request.User;
// calls of goroutines to a generation. Both begin and end under eyes of one
// thread or one lock, so that each either ended before the declaration, with a
// result that the new stack accounts for, or is late.

// generation is one stack in the life of a device.
type generation struct {
	stack   *stack.Stack
	readers []*stack.Reader // by queue
	pool    pool            // of the slow way
	through atomic.Int64    // see setThrough

	mu    sync.Mutex
	calls int  // of goroutines, under way
	over  bool // what is under way is late

	asking atomic.Bool // see askEnd
}

// enter begins a call on the stack; false: it is being replaced.
func (g *generation) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		g.calls++
	}
	return !g.over
}

// isOver says that what is under way was declared late.
func (g *generation) isOver() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.over
}

// epochs are the times of the device's stacks, and what of one is late in the next.
type epochs struct{ *Device }

// leave ends a call, and says what its result err means for the request: Pass, it
// stands; Hold, the request is to be done anew; Fail, standby has timed out.
// Its request may have erred before, and be done again.
func (d epochs) leave(g *generation, err error, again bool) standby.Verdict {
	p := errorPlace(g.stack, err)
	answers := d.answers(g, err, p, again)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.calls--; g.over {
		d.lateCalls.Add(-1)
	}
	return d.judge(g, err, p, answers)
}

// end is leave for a call that has no request.
func (d epochs) end(g *generation) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.calls--; g.over {
		d.lateCalls.Add(-1)
	}
}

// judge is the end check. g.mu is held, so that an error of a stack that has been
// replaced can't send the new one to standby. p is the error's place; answers says that it was
// found out that the storage answers elsewhere.
func (d epochs) judge(g *generation, err error, p standby.Place, answers bool) standby.Verdict {
	if g.over {
		return standby.Hold
	}
	if err == nil {
		return standby.Pass
	}
	errno, ok := storageError(err)
	if !ok {
		return standby.Pass
	}
	v := d.machine.Fault(errno, err.Error(), p, answers)
	if v == standby.Hold && d.ending.Load() {
		return standby.Fail
	}
	return v
}

// lateTransfers are those of a queue's past epochs.
type lateTransfers struct {
	of  map[uint64]*generation // by epoch
	out int
}

// nextEpoch declares the queue's transfers late. It runs on the queue's thread.
func (d epochs) nextEpoch(q *queue) {
	if q.out > 0 {
		if q.late.of == nil {
			q.late.of = map[uint64]*generation{}
		}
		q.late.of[q.epoch] = q.gen
		q.late.out += q.out
		d.lateTransfers.Add(int64(q.out))
		q.out = 0
	}
	for {
		q.epoch = (q.epoch + 1) & epochMask
		if q.late.of[q.epoch] == nil {
			return
		}
	}
}

// cameLate takes the end of a transfer of a past epoch. Its result doesn't count for its
// request, but what a sync that failed may have lost is still the stack's matter, if
// the old one goes on, or its top is the new one's as well.
func (d epochs) cameLate(r *ublk.Request, q *queue, state, rest, epoch uint64, errno unix.Errno) {
	g := q.late.of[epoch]
	if state == stateSync {
		_, _ = g.stack.FlushEnd(&q.flushes[r.Tag()].FlushWaiter, errorOf(errno))
	} else {
		g.readers[r.Queue().Index()].Leave(uint32(rest))
	}
	d.beginsAnew(r, q)
}

// beginsAnew ends what a request of a past epoch was in the middle of.
func (d epochs) beginsAnew(r *ublk.Request, q *queue) {
	d.lateTransfers.Add(-1)
	if q.late.out--; q.late.out == 0 {
		clear(q.late.of)
	}
	r.User = stateAgain
	d.fast.Begin(r)
}

// drain waits, with the gate closed, until nothing is under way, at most for limit, and
// says how much still is.
func (d epochs) drain(ctx context.Context, limit time.Duration) (int, error) {
	deadline := time.Now().Add(limit)
	for {
		out := make([]int, len(d.queues))
		if err := d.dev.OnQueues(func(uq *ublk.Queue) { out[uq.Index()] = d.queues[uq.Index()].out }); err != nil {
			return 0, err
		}
		n := 0
		for _, k := range out {
			n += k
		}
		g := d.gen.Load()
		g.mu.Lock()
		n += g.calls
		g.mu.Unlock()
		if n == 0 || time.Now().After(deadline) {
			return n, nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return n, ctx.Err()
		}
	}
}

// declareLate ends the epoch of everything that is still under way.
func (d epochs) declareLate() error {
	g := d.gen.Load()
	g.mu.Lock()
	g.over = true
	d.lateCalls.Add(int64(g.calls))
	g.mu.Unlock()
	// What hangs keeps its worker, and what waits for one has another generation's.
	d.slow.allAgain(g.pool.empty(true))
	d.slow.allAgain(d.parking.empty())
	return d.dev.OnQueues(func(uq *ublk.Queue) { d.nextEpoch(&d.queues[uq.Index()]) })
}

// adopt has every queue, and calls from now on, use a generation. The gate is closed.
func (d epochs) adopt(g *generation) error {
	d.gen.Store(g)
	return d.dev.OnQueues(func(uq *ublk.Queue) { d.queues[uq.Index()].adopt(g, uq.Index()) })
}

func (q *queue) adopt(g *generation, index int) {
	q.gen, q.stack, q.reader = g, g.stack, g.readers[index]
}

// newGeneration is for a stack that n queues are to use.
func newGeneration(s *stack.Stack, n int) *generation {
	g := &generation{stack: s}
	for range n {
		g.readers = append(g.readers, s.NewReader())
	}
	return g
}
