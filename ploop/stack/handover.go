package stack

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"holdfast/ploop/image"
)

// Handover hands a live stack over to a successor: another stack, which goes on where this one
// stands, with some of the files replaced or opened anew.
//
//	h, err := old.BeginHandover() // no structure is written by old any more
//	defer h.Abort()               // nothing, once there was a Commit
//	next, err := h.Prepare(c)     // checked, locked, in_use set; may be tried again
//	...                           // make next known durably
//	h.Commit()                    // next serves, old never again
//
// It has four states. Begun: nothing begins to write the image's structure by the old stack.
// Prepared: the successor is there, and nobody may use it but to find out what it is. Committed
// and aborted are ends, which nothing leads out of. Until one of them is reached no other handover
// of the stack begins, and the old stack can't be closed without an error.
//
// The methods may be called from any number of goroutines. Stuck never waits for the storage.
type Handover struct {
	old *Stack

	mu    sync.Mutex
	state handoverState
	next  *Stack // prepared
	err   error  // of Abort
}

type handoverState uint8

const (
	handoverBegun handoverState = iota
	handoverPrepared
	handoverCommitted
	handoverAborted
)

func (s handoverState) String() string {
	return [...]string{"begun", "prepared", "committed", "aborted"}[s]
}

// handovers are those that were begun and haven't ended.
var handovers atomic.Int64

// OpenHandovers is how many handovers of this process were begun, and neither committed nor
// aborted: at the end of a test none should be.
func OpenHandovers() int64 { return handovers.Load() }

// BeginHandover begins a handover: from now on no call on s begins a
// write of the image's structure (index, header, size of the file). Calls that
// come to that point, those under way as well, fail with ErrSuperseded, and so
// do those that wait for another one, which may hang: for a lock, for their turn
// at the index, for a sync or the end of a transfer. What is under way in the
// storage goes on. It is ErrHandover if another handover of s is under way, and ErrClosed
// after Close, Abandon or the Commit of another one.
func (s *Stack) BeginHandover() (*Handover, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	if s.life.handing.Swap(true) {
		return nil, fmt.Errorf("%w: another one is under way", ErrHandover)
	}
	handovers.Add(1)
	s.end()
	return &Handover{old: s}, nil
}

// Stuck is how many writes of structure are under way in the old storage, perhaps for
// ever if that is dead.
func (h *Handover) Stuck() int { return int(h.old.life.structure.Load()) }

// Succession says how a stack goes on on other files.
type Succession struct {
	// Refs are the images of the new stack, base first, as many as before.
	Refs []image.Ref
	// Reopen says, by level, which are opened anew: a file in another's place,
	// or the same one again. The others are shared with the old stack and must
	// have the names they had.
	Reopen []bool
	// Force takes the images that are opened anew as they are, an intended
	// substitute, if only they fit the disk. It also says that the caller has
	// made sure that nothing which is still under way in the old storage can
	// reach the new.
	Force bool
	// Drained says that no call and no transfer is under way on the old stack,
	// so that its lock may be given back if it is in the way.
	Drained bool
}

// Prepare makes a stack that goes on where the old one stands, and shares the files with it that
// are not opened anew. The caller lets no request begin on the old stack any more.
//
// Without Force an image that is opened anew must be the old one continued. Its
// header must be what the old stack knows, its index (and for lower images what the merged
// table shows of it) as that one knows it durable. Where the top's index differs in
// what isn't known durable, memory is right: those sectors are written anew
// before anything relies on them. Where a write of the index failed and nobody
// knows what came of it, the file is right. A top that was closed cleanly,
// such as a copy, is taken as well. Everything else is ErrDiverged, a
// FormatError that says where.
//
// With Force the files' own headers and indices count, those of the lower
// images that are shared are read again, an in_use left set in the top is
// logged and no obstacle, and every bit of the dirty bitmaps is set.
//
// A new top is locked, in_use is set in it, and both are durable when Prepare
// returns; so the storage has also shown that it takes writes. What can't be
// proved safe is refused: ErrInFlight if writes of structure hang in the old
// storage (or, where the new file's lock doesn't tell, if anything does), and
// ErrLocked if the new file can't be locked, which is also what happens when
// it is the old file by another name and something is under way in that. Such
// a refusal may be tried again later.
//
// After an error the handover is as it was, to be prepared again or
// aborted; ErrLockLost is said in addition if the old stack's lock couldn't be acquired again.
//
// If the old stack isn't drained, the new one never uses a place that it may still write
// to: clusters come from behind all that it ever had, and what is discarded
// stays unused while it has anything under way.
//
// Prepare opens and reads files and may hang with their storage.
func (h *Handover) Prepare(c Succession) (*Stack, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state != handoverBegun {
		return nil, h.misused("Prepare")
	}
	next, err := h.old.succeed(c)
	if err != nil {
		return nil, err
	}
	h.state, h.next = handoverPrepared, next
	return next, nil
}

// Commit ends the old stack: a Close after it does nothing. Nothing
// is ever written to the files that were replaced, not even that they are no
// longer in use. They are closed when the last call and the last transfer on the old stack
// have come back, which nobody waits for here, and the memory of the table goes
// with them: a Reader must not be asked for a place any more. It is ErrHandover, and does nothing,
// if there is no successor, and nothing at all the second time.
func (h *Handover) Commit() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch h.state {
	case handoverCommitted:
		return nil
	case handoverPrepared:
		h.over(handoverCommitted)
		h.old.Abandon()
		return nil
	}
	return h.misused("Commit")
}

// Abort gives the successor up, if there is one, and has the old stack work again: the top is
// marked as it was before, and the new one's own files are closed. What was under way in the
// storage still is, and is waited for as before. It does nothing after Commit; after another Abort
// it does nothing, and says the same.
//
// Its error says what of that failed; the old stack works all the same unless it is ErrLockLost.
// Then its lock, which a failed Prepare had given back, couldn't be taken again: without
// it somebody else may have begun to write the image. The stack stays superseded, and another
// handover may be tried, whose Abort tries to take the lock again.
func (h *Handover) Abort() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state == handoverCommitted || h.state == handoverAborted {
		return h.err
	}
	if h.next != nil {
		h.err = h.next.giveUp()
	}
	if h.old.closed.Load() {
		h.err = errors.Join(h.err, ErrClosed)
	} else {
		h.err = errors.Join(h.err, h.old.resume())
	}
	h.over(handoverAborted)
	return h.err
}

// over ends the handover.
func (h *Handover) over(state handoverState) {
	h.state, h.next = state, nil
	h.old.life.handing.Store(false)
	handovers.Add(-1)
}

func (h *Handover) misused(what string) error {
	return fmt.Errorf("%w: it is %v, and there is no %s then", ErrHandover, h.state, what)
}
