package stack

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// FlushState says where a flush stands.
type FlushState uint8

const (
	// FlushWait: another one's sync is under way, and Wake will be called.
	FlushWait FlushState = iota
	// FlushLead: the caller syncs the top's file now, and then calls FlushEnd.
	FlushLead
	// FlushDone: everything acknowledged before the flush began is durable.
	FlushDone
	// FlushMore: it is but for what an earlier sync that failed may have lost
	// of the index, and only Stack.Flush writes that anew.
	FlushMore
	// FlushFailed: the sync failed, or another one at the same time.
	FlushFailed
	// FlushAgain: the stack was superseded meanwhile.
	FlushAgain
)

// FlushWaiter is a place in the line of those who want the top durable, for one
// flush at a time. It may be used again when its flush has ended.
type FlushWaiter struct {
	// Wake ends a wait: the state is any but FlushWait, and for FlushFailed
	// there is an error. It is called once for each wait, by any goroutine, and
	// must neither block nor call anything of this package.
	Wake func(FlushState, error)

	s    *Stack
	next *FlushWaiter
}

// syncs has at most one sync of a file under way. Who wants one meanwhile waits
// for the next, which all of them share.
//
// Of two syncs at the same time the storage may tell only one that data was
// lost (Linux tells each open file once), and the other, which says that all is
// well, would be taken for the truth by its flush. For the same reason a sync
// that fails fails also those who wait for the next: it may have lost what they
// want to be durable. And the load of a sync doesn't rise with the number of
// flushes.
//
// A sync that hangs in its storage is waited for by all who want one of the same
// file, and by nobody else: a handover sends those who wait away, and a file opened
// anew has syncs of its own.
type syncs struct {
	mu         sync.Mutex
	lead       *FlushWaiter // whose sync is under way; nil: none is
	with, next flushLine    // those who share it, and those who came later

	// Of the sync under way, as its stack counts:
	seq   uint64 // writes of the index that it makes durable
	gen   uint64 // syncs that had failed when it began
	clean bool   // no write of the index was lost
	room  int64  // of the file that it makes durable: see zeroes
}

// flushLine is a list of waiters, without memory of its own.
type flushLine struct{ first, last *FlushWaiter }

func (l *flushLine) push(w *FlushWaiter) {
	w.next = nil
	if l.first == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
}

func (l *flushLine) pop() *FlushWaiter {
	w := l.first
	if w != nil {
		l.first, w.next = w.next, nil
	}
	return w
}

// join puts another line behind this one.
func (l *flushLine) join(m flushLine) {
	for w := m.pop(); w != nil; w = m.pop() {
		l.push(w)
	}
}

func (l *flushLine) wake(state FlushState, err error) {
	for w := l.pop(); w != nil; w = l.pop() {
		w.Wake(state, err) // from here on it may be in another line
	}
}

// begin has w lead; its sync begins after it.
func (y *syncs) begin(w *FlushWaiter) {
	s := w.s
	y.lead = w
	y.gen = s.index.syncFailed.Load()
	y.clean = s.index.lost.n.Load() == 0
	y.seq = s.indexSeq.Load()
	y.room = s.space.zeroes.room.Load()
}

// pass has the first of those who wait lead, and the others share its sync.
func (y *syncs) pass() *FlushWaiter {
	w := y.next.pop()
	y.with, y.next = y.next, flushLine{}
	y.lead = nil
	if w != nil {
		y.begin(w)
	}
	return w
}

// FlushBegin begins a flush of everything acknowledged before: the answer is
// FlushLead, FlushWait or FlushAgain. Who leads syncs the top's file
// (fdatasync of Fds()[Top()]) by its own means, without waiting for anything of
// this package meanwhile, and tells FlushEnd; or gives the lead up by FlushPass.
func (s *Stack) FlushBegin(w *FlushWaiter) FlushState {
	y := &s.top.syncs
	y.mu.Lock()
	defer y.mu.Unlock()
	w.s = s
	switch {
	case s.life.superseded.Load(): // a handover sets it, and then looks who waits
		return FlushAgain
	case y.lead != nil:
		y.next.push(w)
		return FlushWait
	}
	y.begin(w)
	return FlushLead
}

// FlushEnd ends the sync of w, who leads, with err or without, and gives its
// flush's end: FlushDone, FlushMore or FlushFailed with an error. Those who
// shared the sync are woken, and one of those who came later leads the next.
func (s *Stack) FlushEnd(w *FlushWaiter, err error) (FlushState, error) {
	y := &s.top.syncs
	if err != nil {
		s.lose() // before anybody goes on because this one has ended
	}
	y.mu.Lock()
	if err == nil && y.gen != s.index.syncFailed.Load() {
		err = errLostBefore
	}
	state := FlushDone
	switch {
	case err != nil:
		state = FlushFailed
	case !y.clean:
		state = FlushMore
	}
	if err == nil {
		s.synced.Store(y.seq) // one ends at a time, and they began in order
		raise(&s.space.zeroes.durable, y.room)
	}
	ended := y.with
	if err != nil && !s.believing {
		ended.join(y.next)
		y.next = flushLine{}
	}
	lead := y.pass()
	y.mu.Unlock()
	ended.wake(state, err)
	if lead != nil {
		lead.Wake(FlushLead, nil)
	}
	return state, err
}

// FlushPass gives the lead of w, which hasn't begun its sync, to another one.
func (s *Stack) FlushPass(w *FlushWaiter) {
	y := &s.top.syncs
	y.mu.Lock()
	y.with.join(y.next)
	y.next = y.with
	lead := y.pass()
	y.mu.Unlock()
	if lead != nil {
		lead.Wake(FlushLead, nil)
	}
}

// sendAway ends the waits of those who wait for a sync on behalf of s.
func (y *syncs) sendAway(s *Stack) {
	var away flushLine
	y.mu.Lock()
	for _, l := range []*flushLine{&y.with, &y.next} {
		var stay flushLine
		for w := l.pop(); w != nil; w = l.pop() {
			if w.s == s {
				away.push(w)
			} else {
				stay.push(w)
			}
		}
		*l = stay
	}
	y.mu.Unlock()
	away.wake(FlushAgain, nil)
}

// lose says that a sync of the top's file failed, to whoever has it open.
func (s *Stack) lose() {
	for n := s; n != nil && n.top == s.top; n = n.life.after.Load() {
		n.index.lose(n)
		n.space.zeroes.doubt()
	}
}

var errLostBefore = fmt.Errorf("another one failed and may have lost this write: %w", unix.EIO)

func (s *Stack) lostBefore() error { return s.top.IOError("sync", -1, errLostBefore) }

// sync makes the top's file durable, or fails as the sync that it shared did.
// What an earlier failure may have lost isn't its matter.
func (s *Stack) sync() error {
	type end struct {
		state FlushState
		err   error
	}
	woken := make(chan end, 1)
	w := &FlushWaiter{Wake: func(state FlushState, err error) { woken <- end{state, err} }}
	e := end{state: s.FlushBegin(w)}
	if e.state == FlushWait {
		e = <-woken // a handover ends it
	}
	if e.state == FlushLead {
		e.state, e.err = s.FlushEnd(w, s.top.File.Sync())
	}
	if e.state == FlushAgain {
		return ErrSuperseded
	}
	return s.top.IOError("sync", -1, e.err)
}
