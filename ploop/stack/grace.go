package stack

import (
	"sync"
	"sync/atomic"

	"holdfast/ploop/internal/lock"
)

// grace lets a change wait until no fast transfer is under way that was
// placed before the change was announced.
//
// Each Reader counts its transfers in one of two counters, chosen by the
// parity of the epoch. A waiter first announces its change (the busy bit in
// the table), then sees the idle counter of every Reader drained, turns the
// epoch, and sees the other drained. Two drains are needed because a Reader
// may load the epoch, be delayed, and count under the old parity. A Reader
// counts *before* it looks at the table: either the waiter sees the count, or
// the Reader sees the busy bit.
type grace struct {
	epoch   atomic.Uint64
	waiting atomic.Int32 // someone waits: leaving Readers must wake them

	turn lock.Mutex // one waiter at a time

	mu      sync.Mutex
	cond    *sync.Cond // on mu: some counter reached zero
	readers []*Reader  // under mu

	skip bool // tests' control: don't wait
}

func (g *grace) init() { g.cond = sync.NewCond(&g.mu) }

func (g *grace) add(r *Reader) {
	g.mu.Lock()
	g.readers = append(g.readers, r)
	g.mu.Unlock()
}

// enter counts a transfer of r and returns its parity for leave.
func (g *grace) enter(r *Reader) uint32 {
	p := uint32(g.epoch.Load() & 1)
	r.count[p].n.Add(1)
	return p
}

func (g *grace) leave(r *Reader, p uint32) {
	if r.count[p].n.Add(-1) == 0 && g.waiting.Load() != 0 {
		g.mu.Lock()
		g.cond.Broadcast()
		g.mu.Unlock()
	}
}

// wait returns when every transfer that was counted before the call has left,
// or is ErrSuperseded when over is closed before; a nil over never is. Who
// closes it calls wake. It must not be called between enter and leave.
func (g *grace) wait(over <-chan struct{}) error {
	if g.skip {
		return nil
	}
	if err := g.turn.Lock(over); err != nil {
		return err
	}
	defer g.turn.Unlock()
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	p := g.epoch.Load() & 1
	if err := g.drain(p^1, over); err != nil {
		return err
	}
	g.epoch.Add(1)
	return g.drain(p, over)
}

func (g *grace) drain(p uint64, over <-chan struct{}) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.readers {
		for r.count[p].n.Load() != 0 {
			select {
			case <-over:
				return ErrSuperseded
			default:
				g.cond.Wait()
			}
		}
	}
	return nil
}

// wake has those who wait see that they may give up.
func (g *grace) wake() {
	g.mu.Lock()
	g.cond.Broadcast()
	g.mu.Unlock()
}

// idle says that no transfer is under way. It never waits, and holds only if none can begin.
func (g *grace) idle() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.readers {
		if r.count[0].n.Load() != 0 || r.count[1].n.Load() != 0 {
			return false
		}
	}
	return true
}
