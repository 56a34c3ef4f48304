package device

import (
	"errors"
	"time"

	"holdfast/api"
	"holdfast/ploop/stack"
	"holdfast/standby"
)

// endInterval is the time between two questions whether the top's file still ends where it
// should. Allocations and the end of the device ask by themselves; this is for a disk that is
// only read, or written in place.
const endInterval = 10 * time.Second

// watchEnd asks until the device is closed.
func (d link) watchEnd() {
	t := time.NewTicker(endInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			d.askEnd(d.gen.Load())
		case <-d.closing:
			return
		}
	}
}

// askEnd asks once, unless an earlier question to the same files is still out: those may be
// dead, and hang whoever asks. It isn't counted as a call, since nobody has to wait for it.
func (d link) askEnd(g *generation) {
	if g.asking.Swap(true) {
		return
	}
	go func() {
		err := g.stack.Intact()
		if !errors.Is(err, stack.ErrTruncated) {
			g.asking.Store(false) // what else it may be, the next request meets
			return
		}
		// Asking stays set: it is told once.
		g.mu.Lock()
		d.epochs.judge(g, err, standby.Place{}, false)
		over := g.over
		g.mu.Unlock()
		if !over {
			d.emit(api.EventTruncated, "%v", err)
		}
	}()
}
