package ublk

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// mailbox brings work from other goroutines to a queue's thread: requests on a
// stack without a lock, and functions, which are rare, in a slice with one. The
// thread says that it sleeps before it looks for the last time, and who puts work
// in after that look sees it sleep and wakes it; so a busy thread costs the
// others no system call.
type mailbox struct {
	requests atomic.Pointer[Request]
	posts    atomic.Bool
	sleeping atomic.Bool

	// wake is an os.File because a waker may come when the queue has ended: writing
	// to a closed File is harmless, to a closed descriptor it is not.
	wake   *os.File
	wakeFd int

	mu     sync.Mutex
	funcs  []func()
	closed bool
}

var wakeValue = func() []byte {
	b := make([]byte, 8)
	b[0], b[7] = 1, 1 // not zero and not all ones in either byte order
	return b
}()

// openMailbox makes the descriptor that wakes the queue's thread.
func (q *Queue) openMailbox() error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	q.wakeFd, q.wake = fd, os.NewFile(uintptr(fd), "eventfd")
	q.counter = new(uint64)
	return nil
}

// mail puts a request that a goroutine has done with into the queue's mailbox.
func (q *Queue) mail(r *Request) {
	if r.mailed.Swap(true) {
		panic("ublk: completed twice: " + r.String())
	}
	m := &q.mailbox
	for {
		head := m.requests.Load()
		r.next = head
		if m.requests.CompareAndSwap(head, r) {
			break
		}
	}
	m.rouse()
}

func (m *mailbox) rouse() {
	if m.sleeping.Load() && m.sleeping.CompareAndSwap(true, false) {
		m.wake.Write(wakeValue)
	}
}

// empty is the thread's last look before it sleeps.
func (m *mailbox) empty() bool { return m.requests.Load() == nil && !m.posts.Load() }

// collect does what the mailbox holds. Queue's thread.
func (q *Queue) collect() {
	m := &q.mailbox
	if m.posts.Load() {
		m.mu.Lock()
		funcs := m.funcs
		m.funcs = nil
		m.posts.Store(false)
		m.mu.Unlock()
		for _, fn := range funcs {
			fn()
		}
	}
	if m.requests.Load() == nil {
		return
	}
	// The stack has the latest on top: turn it over.
	var first *Request
	for r := m.requests.Swap(nil); r != nil; {
		next := r.next
		r.next = first
		first, r = r, next
	}
	for r := first; r != nil; {
		next := r.next
		r.next = nil
		again, errno := r.again, r.errno
		r.mailed.Store(false)
		if again {
			r.must(ownedByHandler, "requeue")
			q.handler.Begin(r)
		} else {
			q.commit(r, errno)
		}
		r = next
	}
}

// Post has fn run on the queue's thread, soon, and does not wait for it. fn must
// not block. ErrStopped when the queue has ended: fn will not run.
func (q *Queue) Post(fn func()) error {
	m := &q.mailbox
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return ErrStopped
	}
	m.funcs = append(m.funcs, fn)
	m.posts.Store(true)
	m.mu.Unlock()
	m.rouse()
	return nil
}

// closeMailbox runs what was posted in time and refuses the rest. Queue's thread,
// when every tag has come back.
func (q *Queue) closeMailbox() {
	m := &q.mailbox
	m.mu.Lock()
	m.closed = true
	funcs := m.funcs
	m.funcs = nil
	m.mu.Unlock()
	for _, fn := range funcs {
		fn()
	}
}
