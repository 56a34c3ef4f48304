package device

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"holdfast/ublk"
)

// The slow way has a bounded number of workers, since each may wait in a system call and
// then is a thread, and each has buffers. What finds none free waits in a list, which takes
// no memory: there is a job for each tag.
//
// Kinds of work have workers of their own, so that what hangs keeps only its like from
// beginning. No worker waits for a cluster that another one has: such a job waits behind
// that one, and its request then begins anew, by the fast way if that can serve it by now.
// Nor does a worker wait for one that is in the list: who has a lock, or the lead in writing
// the index, has a worker.
//
// A pool belongs to a generation. What hangs in a stack that is replaced takes no place from
// the work on the next one.

// class is a kind of slow work.
type class uint8

const (
	reading  class = iota // READ
	changing              // WRITE, DISCARD, WRITE_ZEROES
	flushing              // FLUSH, or a sync that an earlier failure makes necessary
	judging               // what becomes of a failed transfer; may read elsewhere, for a time
	classes
)

// mostWorkers bounds the workers of a generation. Changes that copy up share one sync and one
// write of the index between all that wait for them, so that their rate grows with their
// number, up to 64: on storage where a write takes 1 ms and a sync 5 ms, 16, 32, 64 and 128
// workers copy up 800, 1600, 1700 and 1900 clusters a second, and give 2500, 2700, 3600 and 3300
// new ones a place, which waits for no sync (go test -run - -bench Workers -benchtime 1500x
// ./ploop/stack). Reads are slow only where a range isn't in one place of one file.
var mostWorkers = [classes]int{reading: 32, changing: 64, flushing: 8, judging: 4}

// mostThreads bounds the workers of all devices of the process, but for fewWorkers of each
// class, which every device has for certain: Go ends a process that can't have another
// thread.
const (
	mostThreads = 4096
	fewWorkers  = 2
)

// workers are those of all devices, of replaced generations as well.
var workers atomic.Int64

// request is a *ublk.Request to the slow way, which tests without a driver have another for.
type request interface {
	Op() ublk.Op
	Offset() int64
	Len() int
	FUA() bool
	NoUnmap() bool
	Tag() int
	Buffer() []byte
	ReadPayload(p []byte, off int) error
	WritePayload(p []byte, off int) error
	Complete(unix.Errno)
	Requeue() // it begins anew
}

var _ request = (*ublk.Request)(nil)

// job is what the slow way has to do for a request. It belongs to the tag, and is another
// request's as soon as this one has been completed or begun anew.
type job struct {
	r           request
	q           *queue
	class       class
	first, last uint64 // clusters that a READ or a change is about
	failed      failedTransfer

	next   *job
	behind jobs // those that wait for the end of this one
	parked bool // see park.go
	tried  bool
}

// failedTransfer is what a job of class judging is about.
type failedTransfer struct {
	g     *generation
	level int
	sync  bool
	off   int64 // in the file, and how much; not of a sync
	len   int64
	errno unix.Errno
}

// again has the request begin anew on its queue's thread.
func (j *job) again() { j.r.Requeue() }

// conflicts says whether one of two jobs would wait for the other: for a cluster's lock,
// or, as a READ, for a cluster that is being taken out of the index.
func (j *job) conflicts(with *job) bool {
	if j.first > with.last || with.first > j.last {
		return false
	}
	moves := func(j *job) bool { return j.class == changing && j.r.Op() != ublk.OpWrite }
	return j.class == changing && with.class == changing || moves(j) || moves(with)
}

// jobs is a list, the oldest first.
type jobs struct{ head, tail *job }

func (l *jobs) push(j *job) {
	j.next = nil
	if l.tail == nil {
		l.head = j
	} else {
		l.tail.next = j
	}
	l.tail = j
}

func (l *jobs) pushFront(j *job) {
	if j.next = l.head; l.head == nil {
		l.tail = j
	}
	l.head = j
}

func (l *jobs) pop() *job {
	j := l.head
	if j == nil {
		return nil
	}
	if l.head = j.next; l.head == nil {
		l.tail = nil
	}
	j.next = nil
	return j
}

// take moves all of another list behind this one's.
func (l *jobs) take(from *jobs) {
	for j := from.pop(); j != nil; j = from.pop() {
		l.push(j)
	}
}

// pool is a generation's workers and what waits for them.
type pool struct {
	mu      sync.Mutex
	over    bool
	running [classes]int
	waiting [classes]jobs
	active  []*job // of the classes reading and changing
}

// The answers of pool.add.
type added uint8

const (
	queued  added = iota
	started       // the caller makes a worker for it
	refused       // it is to begin anew
)

// add takes a job in. shut is the device's gate's answer: with the gate closed nothing is to
// wait here, where closing it looks once.
func (p *pool) add(j *job, shut func() bool) added {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return refused
	}
	blocker := p.blocker(j)
	n := &p.running[j.class]
	switch {
	case blocker == nil && *n < mostWorkers[j.class] && (*n < fewWorkers || workers.Load() < mostThreads):
		*n++
		workers.Add(1)
		p.begin(j)
		return started
	case shut():
		return refused
	case blocker != nil:
		blocker.behind.push(j)
	default:
		p.waiting[j.class].push(j)
	}
	return queued
}

func (p *pool) blocker(j *job) *job {
	if j.class == reading || j.class == changing {
		for _, a := range p.active {
			if a.conflicts(j) {
				return a
			}
		}
	}
	return nil
}

func (p *pool) begin(j *job) {
	if j.class == reading || j.class == changing {
		p.active = append(p.active, j)
	}
}

// done ends a worker's job, before its request is completed, and gives those that waited for it.
func (p *pool) done(j *job) (behind jobs) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, a := range p.active {
		if a == j {
			last := len(p.active) - 1
			p.active[i], p.active[last] = p.active[last], nil
			p.active = p.active[:last]
			break
		}
	}
	behind, j.behind = j.behind, jobs{}
	return behind
}

// next is a worker's next job; nil: it is to end.
func (p *pool) next(c class) *job {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		j := p.waiting[c].pop()
		if j == nil {
			p.running[c]--
			workers.Add(-1)
			return nil
		}
		if blocker := p.blocker(j); blocker != nil {
			blocker.behind.push(j)
			continue
		}
		p.begin(j)
		return j
	}
}

// empty takes out what waits. With over nothing is taken in any more.
func (p *pool) empty(over bool) (out jobs) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = p.over || over
	for c := range p.waiting {
		out.take(&p.waiting[c])
	}
	for _, a := range p.active {
		out.take(&a.behind)
	}
	return out
}
