package stack

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
)

// life is what a stack knows of those before and after it; see Handover.
type life struct {
	// structure counts the writes under way that change the image's structure:
	// header, index, size. Each is counted before it looks at superseded, so
	// that BeginHandover sees it or it sees that.
	structure  atomic.Int64
	superseded atomic.Bool
	handing    atomic.Bool // a handover has begun, and hasn't ended

	// ended is closed when the stack is superseded, and another one after each
	// that was aborted: every wait of this package for somebody else ends with it.
	endMu sync.Mutex
	ended chan struct{}

	// after is the stack that comes after this one and has the same top open.
	after atomic.Pointer[Stack]

	// before are the stacks that this one came after and whose calls or
	// transfers haven't all come back.
	mu     sync.Mutex
	before []*Stack

	first    []byte // the top's first sector as it was before Prepare
	careless bool   // tests' control: reuse places that a predecessor may write to
}

// calls counts the blocking calls under way.
type calls struct {
	grace  grace
	reader Reader
}

func (c *calls) init() {
	c.grace.init()
	c.grace.add(&c.reader)
}

func (c *calls) begin() uint32    { return c.grace.enter(&c.reader) }
func (c *calls) end(token uint32) { c.grace.leave(&c.reader, token) }

// idle says that no call and no transfer is under way.
func (s *Stack) idle() bool { return s.calls.grace.idle() && s.grace.idle() }

// beginStructure comes before each write of structure, and endStructure when
// memory says what came of it.
func (l *life) beginStructure() error {
	l.structure.Add(1)
	if l.superseded.Load() {
		l.endStructure()
		return ErrSuperseded
	}
	return nil
}

func (l *life) endStructure() { l.structure.Add(-1) }

// over is closed when s is superseded.
func (l *life) over() <-chan struct{} {
	l.endMu.Lock()
	defer l.endMu.Unlock()
	return l.ended
}

// end has everybody who waits within s for somebody else return with
// ErrSuperseded, now and until resume.
func (s *Stack) end() {
	l := &s.life
	l.endMu.Lock()
	if !l.superseded.Swap(true) {
		close(l.ended)
	}
	l.endMu.Unlock()
	s.grace.wake()
	s.top.syncs.sendAway(s)
}

// predecessorsIdle says that nobody writes any more to a place that an earlier
// stack told.
func (l *life) predecessorsIdle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.before) > 0 && l.before[0].idle() {
		l.before = l.before[1:]
	}
	return len(l.before) == 0 || l.careless
}

// resume has a superseded stack work again, or is ErrLockLost.
func (s *Stack) resume() error {
	if err := s.takeLocksBack(); err != nil {
		return err
	}
	l := &s.life
	l.endMu.Lock()
	defer l.endMu.Unlock()
	l.after.Store(nil)
	if l.superseded.Swap(false) {
		l.ended = make(chan struct{})
	}
	return nil
}

// giveUp undoes what a successor did that hasn't served anybody.
func (n *Stack) giveUp() error {
	n.end()
	n.closeMu.Lock()
	defer n.closeMu.Unlock()
	if n.closed.Swap(true) {
		return nil
	}
	return errors.Join(n.unmark(), n.discard())
}

// Abandon ends s without a word to its files, which stay marked in use: others go on with them, or
// nobody knows what became of the requests. A Close after it does nothing. The files are closed
// when the last call and the last transfer on s have come back, which nobody waits for here, and
// the memory of the table goes with them: a Reader must not be asked for a place any more.
func (s *Stack) Abandon() {
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	if s.closed.Swap(true) {
		return
	}
	s.end()
	rest := s.deltas
	if s.idle() {
		// The files that are shared with a successor are that one's from now on.
		rest = nil
		for _, d := range s.deltas {
			if !d.leaveToOthers() {
				rest = append(rest, d)
			}
		}
	}
	go func() {
		_ = s.calls.grace.wait(nil) // a nil channel ends no wait
		_ = s.grace.wait(nil)
		for _, d := range rest {
			if err := d.release(); err != nil {
				s.log("a replaced image: %v", err)
			}
		}
		s.freeTable()
	}()
}

// lockTime bounds an operation on a lock, which may hang in dead storage.
var lockTime = 5 * time.Second

// bounded runs an operation on the delta's lock and waits for it so long. One that hangs keeps
// the next from beginning, so that they don't become many, however often it is tried.
func (d *delta) bounded(op string, do func() error) error {
	t := time.NewTimer(lockTime)
	defer t.Stop()
	late := func() error {
		return d.IOError(op, -1, fmt.Errorf("no answer within %v: %w", lockTime, unix.ETIMEDOUT))
	}
	select {
	case d.unlocking <- struct{}{}:
	case <-t.C:
		return late()
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-d.unlocking }()
		done <- do()
	}()
	select {
	case err := <-done:
		var format *image.FormatError
		if errors.As(err, &format) {
			return err
		}
		return d.IOError(op, -1, err)
	case <-t.C:
		return late()
	}
}

// giveLock gives the delta's lock back, that another open file of the same
// image can have it.
func (d *delta) giveLock() error {
	d.unlocked.Store(true)
	return d.bounded("unlock", d.File.Unlock)
}

func (s *Stack) takeLocksBack() (err error) {
	for _, d := range s.deltas {
		if !d.unlocked.Load() {
			continue
		}
		failed := d.bounded("lock", func() error {
			err := d.File.Lock()
			if err == nil {
				d.unlocked.Store(false)
			}
			return err
		})
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", ErrLockLost, failed))
		}
	}
	return err
}

// unmark writes back what mark wrote over.
func (n *Stack) unmark() error {
	if n.life.first == nil {
		return nil
	}
	d := n.top
	if _, err := d.File.WriteAt(n.life.first, 0); err != nil {
		return d.IOError("write header", 0, err)
	}
	n.life.first = nil
	return d.IOError("sync", -1, d.File.Sync())
}
