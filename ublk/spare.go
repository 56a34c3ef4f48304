package ublk

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// spare is a device's way for zero copy when there is no memory: a request whose pages the
// driver could not register is transferred by way of a buffer that has been there from the
// beginning. There is one for all queues, as it is hardly ever needed: a request waits in its
// queue's line, and the queue that wants the buffer in the device's.
type spare struct {
	mem []byte

	mu      sync.Mutex
	taken   bool
	waiting []*Queue // each at most once
}

// open maps the buffer.
func (s *spare) open(n, queues int) (err error) {
	if s.mem, err = mapMemory(n, unix.MAP_POPULATE); err != nil {
		return fmt.Errorf("map a spare buffer of %d bytes: %w", n, err)
	}
	s.waiting = make([]*Queue, 0, queues) // no memory is wanted later
	return nil
}

// close is called when the queues have ended.
func (s *spare) close() (err error) {
	if s.mem != nil {
		err = unix.Munmap(s.mem)
		s.mem = nil
	}
	return err
}

func (s *spare) at() unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(s.mem)) }

// take says whether q has the buffer now; else it waits for it.
func (s *spare) take(q *Queue) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.taken {
		s.taken = true
		return true
	}
	s.waiting = append(s.waiting, q)
	return false
}

// pass gives the buffer to who waits for it longest, which may be q itself if it wants it
// again; nil: to nobody.
func (s *spare) pass(q *Queue, again bool) *Queue {
	s.mu.Lock()
	defer s.mu.Unlock()
	if again {
		s.waiting = append(s.waiting, q)
	}
	if len(s.waiting) == 0 {
		s.taken = false
		return nil
	}
	next := s.waiting[0]
	s.waiting = s.waiting[:copy(s.waiting, s.waiting[1:])]
	return next
}

// spareLine is a queue's requests that wait for the spare buffer.
type spareLine struct {
	wanted      bool // the queue has the buffer, or waits for it
	first, last *Request
	turn        func() // bounceFirst
}

// bounce takes a request by way of the spare buffer, when that is free. Queue's thread.
func (q *Queue) bounce(r *Request) {
	l := &q.line
	r.next = nil
	if l.last == nil {
		l.first = r
	} else {
		l.last.next = r
	}
	l.last = r
	if !l.wanted {
		l.wanted = true
		if q.dev.spare.take(q) {
			q.bounceFirst()
		}
	}
}

// bounceFirst begins the transfer of the line's first request: the queue has the buffer.
func (q *Queue) bounceFirst() {
	l := &q.line
	r := l.first
	if l.first = r.next; l.first == nil {
		l.last = nil
	}
	r.next = nil
	q.bounces++
	t := &r.transfer
	t.bounced = true
	if t.kind == transferWrite {
		if errno := r.pagesTo(q.dev.spare.mem[:t.n], t.pos); errno != 0 {
			q.finish(r, errno)
			return
		}
	}
	q.submit(r)
}

// unbounce ends a transfer by way of the spare buffer, and passes that on.
func (q *Queue) unbounce(r *Request, errno unix.Errno) unix.Errno {
	t := &r.transfer
	if t.kind == transferRead && errno == 0 {
		errno = r.pagesFrom(q.dev.spare.mem[:t.n], t.pos)
	}
	t.bounced = false
	q.line.wanted = q.line.first != nil
	switch next := q.dev.spare.pass(q, q.line.wanted); next {
	case nil:
	case q:
		q.bounceFirst()
	default:
		// It has a request of its own under way, and so hasn't ended.
		if err := next.Post(next.line.turn); err != nil {
			panic(fmt.Sprintf("ublk: device %d, queue %d: waits for the spare buffer: %v", next.dev.info.ID, next.index, err))
		}
	}
	return errno
}
