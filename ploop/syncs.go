package ploop

import "sync"

// syncs knows the syncs of the top's file that are under way.
//
// Of several syncs at the same time the storage may tell only one that data
// was lost, and another, which ends first, that all is well. So what a sync
// has made durable is believed only when all that overlapped it have been
// heard of. Who waits for that waits for nothing else, and nobody who syncs
// waits for anything of this package meanwhile.
type syncs struct {
	mu   sync.Mutex
	cond *sync.Cond
	turn sync.Mutex // of those who wait
	// life is another after each Resume: what has not come back by then is
	// forgotten, as it may have been by the caller.
	life   uint64
	parity uint64
	count  [2]int // under way, by the parity under which they began
	// out are those that have not come back, by life: a life is not lived again
	// while one of it may still come, and be taken for one of the new.
	out [1 << syncLifeBits]int

	// Of those under way and all that overlapped them, directly or by others:
	good   uint64 // the highest number (see indexSeq) that one made durable
	failed bool
}

// A sync's token is its parity and its life.
const (
	syncLifeBits = 3
	syncBits     = syncLifeBits + 1
	syncLifeMask = 1<<syncLifeBits - 1
)

func (y *syncs) init() { y.cond = sync.NewCond(&y.mu) }

func (y *syncs) begin() (token uint64) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.count[y.parity]++
	y.out[y.life]++
	return y.life<<1 | y.parity
}

// end ends a sync that makes everything up to number seq durable, or fails. It
// returns the number up to which that is certain by now, 0: nothing new is.
func (y *syncs) end(token, seq uint64, ok bool) (certain uint64) {
	y.mu.Lock()
	defer y.mu.Unlock()
	life := token >> 1 & syncLifeMask
	if y.out[life]--; life != y.life {
		return 0
	}
	if ok {
		y.good = max(y.good, seq)
	} else {
		y.failed = true
	}
	p := token & 1
	if y.count[p]--; y.count[p] == 0 {
		y.cond.Broadcast()
	}
	if y.count == [2]int{} {
		if !y.failed {
			certain = y.good
		}
		y.good, y.failed = 0, false
	}
	return certain
}

// wait returns when all that are under way have ended, or when givenUp says so.
func (y *syncs) wait(givenUp func() bool) {
	y.turn.Lock()
	defer y.turn.Unlock()
	y.mu.Lock()
	defer y.mu.Unlock()
	life, p := y.life, y.parity
	y.parity ^= 1 // those that begin from now on aren't waited for
	for y.count[p] > 0 && y.life == life && !givenUp() {
		y.cond.Wait()
	}
}

// wake has wait look again.
func (y *syncs) wake() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.cond.Broadcast()
}

// forget begins anew with none under way.
func (y *syncs) forget() {
	y.mu.Lock()
	defer y.mu.Unlock()
	// None is free when one hangs of each; a closed gate lets none begin.
	for range syncLifeMask {
		if y.life = (y.life + 1) & syncLifeMask; y.out[y.life] == 0 {
			break
		}
	}
	y.count, y.good, y.failed = [2]int{}, 0, false
	y.cond.Broadcast()
}
