package ublk

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/internal/failpoint"
	"holdfast/ublk/uring"
)

const fixedFile = uring.FixedFile

// user_data of a queue's ring: the tag in the low 16 bits, what it is about above.
const (
	kindCommand  = 0 << 16
	kindTransfer = 1 << 16
	kindWake     = 2 << 16
	kindMask     = 0xff << 16
)

// Queue is one queue of a device: its thread and all that the thread owns.
type Queue struct {
	ring     *uring.Ring
	handler  Handler
	requests []Request
	descs    unsafe.Pointer // *[depth]ioDesc, written by the driver
	buffers  unsafe.Pointer // copy path: MaxIO bytes a tag
	maxIO    int
	fd       int // /dev/ublkcN
	index    int
	zeroCopy bool
	allowed  uint32 // bit set of operations the handler gets to see

	worker  []bool   // by file slot: see blocksInline
	changes []uint32 // by file slot: times that it was filled or emptied

	gone    int  // tags whose command came back aborted: all of them ends the thread
	leaving bool // end as soon as no transfer is under way; see Device.Leave

	line    spareLine // zero copy without memory
	bounces uint64

	dev      *Device
	thread   *thread
	mem      []byte // buffers
	descMem  []byte
	counter  *uint64 // what the wake-up read reads
	wakeups  uint64
	ops      [opCount]uint64
	turns    uint64
	began    time.Time
	yielded  time.Duration // since began
	reported queueStats

	_ [64]byte // others write what follows
	mailbox
}

// queueStats is what others may read.
type queueStats struct {
	ops              [opCount]atomic.Uint64
	wakeups, bounces atomic.Uint64
}

// Index is the queue's number, from 0.
func (q *Queue) Index() int { return q.index }

// Device is the device the queue belongs to.
func (q *Queue) Device() *Device { return q.dev }

// buffer is where a tag's bytes are on the copy path.
func (q *Queue) buffer(tag int) unsafe.Pointer { return unsafe.Add(q.buffers, tag*q.maxIO) }

// run is the queue's thread, from its set-up to the last tag's return. It reports
// whether the set-up succeeded, and, when those of all queues have, whether the FETCHes did;
// where only a part of them did, the tags that the driver did take are waited for.
func (q *Queue) run(cpus *CPUSet, ready chan<- error, fetch <-chan bool) {
	defer q.dev.queueEnded()
	ready <- q.wrap(q.setup(cpus))
	if <-fetch {
		ready <- q.wrap(q.fetchAll())
	} else {
		q.gone = len(q.requests) // nothing to wait for
	}
	if q.ring != nil {
		q.loop()
	}
	q.closeMailbox()
	if !q.leaving {
		q.release()
	}
}

func (q *Queue) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("ublk: device %d, queue %d: %w", q.dev.info.ID, q.index, err)
}

func (q *Queue) setup(cpus *CPUSet) error {
	if cpus != nil {
		// A cpuset may forbid all of them; the queue then runs where it may.
		_ = cpus.pin()
	}
	if !failpoint.Off("no-protect") {
		setIOFlusher()
	}
	d := q.dev
	depth := d.info.Depth
	page := os.Getpagesize()

	size := roundUp(depth*int(unsafe.Sizeof(ioDesc{})), page)
	desc, err := unix.Mmap(q.fd, int64(q.index)*int64(roundUp(descStride, page)), size, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map %d bytes of descriptors from %s: %w", size, d.charPath(), err)
	}
	q.descMem, q.descs = desc, unsafe.Pointer(&desc[0])

	if !q.zeroCopy {
		if q.mem, err = mapMemory(depth*q.maxIO, unix.MAP_NORESERVE); err != nil {
			return fmt.Errorf("map %d buffers of %d bytes: %w", depth, q.maxIO, err)
		}
		q.buffers = unsafe.Pointer(&q.mem[0])
	}
	q.line.turn = q.bounceFirst

	if err := q.openMailbox(); err != nil {
		return err
	}
	if err := q.openRing(); err != nil {
		return err
	}
	if d.cfg.Files > 0 {
		if err := q.ring.RegisterFilesSparse(d.cfg.Files); err != nil {
			return err
		}
	}
	if q.zeroCopy {
		if err := q.ring.RegisterBuffersSparse(depth); err != nil {
			return err
		}
	}
	return nil
}

// openRing makes the ring. A tag has one entry at a time, the wake-up one more; a
// completion that was not consumed yet and the next of the same tag make two.
func (q *Queue) openRing() error {
	entries := 1 << bits.Len(uint(len(q.requests)+1))
	ring, err := uring.New(uring.Params{Entries: entries, CQEntries: 2 * entries})
	if err != nil {
		return err
	}
	_ = ring.RegisterRing() // an optimisation
	// Each tag can have one, so that transfers which hang never keep others from
	// beginning. Before Linux 5.15 the kernel's limit stands.
	_ = ring.MaxWorkers(len(q.requests))
	q.ring = ring
	return nil
}

// release gives back everything but /dev/ublkcN, in the order that DEL_DEV needs:
// the mapping and the ring refer to it. A queue that leaves does it when its thread is
// gone (see Leave).
func (q *Queue) release() {
	var errs []error
	if q.ring != nil {
		errs = append(errs, q.ring.Close())
	}
	if q.descMem != nil {
		errs = append(errs, unix.Munmap(q.descMem))
	}
	if q.mem != nil {
		errs = append(errs, unix.Munmap(q.mem))
	}
	if q.wake != nil {
		errs = append(errs, q.wake.Close())
	}
	q.dev.keepError(errors.Join(errs...))
}

// fetchAll leaves a command for every tag with the driver. A refusal comes back at
// once.
func (q *Queue) fetchAll() error {
	for tag := range q.requests {
		r := &q.requests[tag]
		r.queue, r.tag = q, uint16(tag)
		q.command(r, ioFetchReq, 0)
	}
	q.enter(0)
	var err error
	n := q.ring.Ready()
	for i := range n {
		if cqe := q.ring.At(i); cqe.Res < 0 {
			q.gone++
			err = fmt.Errorf("FETCH of tag %d: %w", cqe.UserData&0xffff, unix.Errno(-cqe.Res))
		}
	}
	q.ring.Consume(n)
	return err
}

// command puts a FETCH or a COMMIT_AND_FETCH for a request's tag on the ring.
func (q *Queue) command(r *Request, op uint32, result int32) {
	s := q.sqe()
	s.PrepURingCmd(q.fd, op)
	s.UserData = uint64(r.tag) | kindCommand
	cmd := (*ioCmd)(unsafe.Pointer(&s.Cmd))
	cmd.qID = uint16(q.index)
	cmd.tag = r.tag
	cmd.result = result
	if q.zeroCopy {
		s.Addr = uint64(r.tag) | autoBufRegFallback
		if q.dev.cfg.breakBufReg && r.tag&1 != 0 {
			s.Addr |= 0xf000 // no such slot
		}
	} else {
		cmd.addr = uint64(uintptr(q.buffer(int(r.tag))))
	}
}

// commit answers a request and asks for the tag's next one.
func (q *Queue) commit(r *Request, errno unix.Errno) {
	r.must(ownedByHandler, "complete")
	r.owner = ownedByDriver
	var result int32
	switch {
	case errno != 0:
		result = -int32(errno)
	case r.op <= OpWrite:
		result = int32(r.n) // the driver wants the byte count for these and 0 for others
	}
	q.command(r, ioCommitAndFetchReq, result)
}

// sqe returns a free submission entry. The ring has room for every tag, so the
// loop is for a kernel that took less than it was given.
func (q *Queue) sqe() *uring.SQE {
	for {
		if s := q.ring.GetSQE(); s != nil {
			return s
		}
		_, err := q.ring.Submit()
		q.check(err)
	}
}

func (q *Queue) enter(wait int) {
	_, err := q.ring.SubmitAndWait(wait, -1)
	q.check(err)
}

// check ends the process when the ring itself fails, which only a bug can bring
// about. Without its ring a queue cannot answer requests any more, and the death of
// the server is what the driver knows to deal with. A lack of memory or of room
// passes by.
func (q *Queue) check(err error) {
	if err != nil && err != unix.EAGAIN && err != unix.EBUSY {
		panic(fmt.Sprintf("ublk: device %d, queue %d: io_uring_enter: %v", q.dev.info.ID, q.index, err))
	}
}

// loop serves until every tag's command has come back aborted.
func (q *Queue) loop() {
	q.armWake()
	q.began = time.Now()
	for {
		q.collect()
		if q.gone == len(q.requests) || q.leaving && !q.transferring() {
			return
		}
		wait := 1
		q.sleeping.Store(true)
		if !q.empty() {
			wait = 0
		}
		q.enter(wait)
		q.sleeping.Store(false)
		n := q.ring.Ready()
		for i := range n {
			cqe := q.ring.At(i)
			tag := int(cqe.UserData & 0xffff)
			switch cqe.UserData & kindMask {
			case kindTransfer:
				q.transferred(&q.requests[tag], cqe.Res)
			case kindCommand:
				q.fetched(&q.requests[tag], cqe.Res)
			case kindWake:
				q.wakeups++
				q.armWake()
			}
		}
		q.ring.Consume(n)
		q.report()
		q.yield()
	}
}

// transferring says that the ring has a request's transfer.
func (q *Queue) transferring() bool {
	for i := range q.requests {
		if q.requests[i].owner == ownedByRing {
			return true
		}
	}
	return false
}

// yieldEvery is a little less than the 10 ms after which the Go scheduler preempts.
const yieldEvery = 8 * time.Millisecond

// yield lets the scheduler see the thread's goroutine run anew every few
// milliseconds. One that never does is preempted after 10 ms: the runtime signals
// the thread, which interrupts its wait, takes its processor away, and the
// runtime's monitor, having found something to do, then polls every 20 µs for a
// while. Under load that repeats itself for ever. In the emulated VM, switching every
// second between this and nothing, under one load on a null device, yielding took a
// tenth off the server's CPU time per request, and more in calmer runs.
// It costs a hand-over between threads. The clock is read in every second turn.
func (q *Queue) yield() {
	if q.turns++; q.turns%2 != 0 {
		return
	}
	if now := time.Since(q.began); now-q.yielded > yieldEvery {
		q.yielded = now
		runtime.Gosched()
	}
}

func (q *Queue) armWake() {
	s := q.sqe()
	s.PrepRead(q.wakeFd, unsafe.Pointer(q.counter), 8, 0)
	s.UserData = kindWake
}

// fetched takes what the driver answered to a tag's command: a request, or that
// the device is going away.
func (q *Queue) fetched(r *Request, res int32) {
	if res < 0 {
		if unix.Errno(-res) != unix.ENODEV { // UBLK_IO_RES_ABORT
			panic(fmt.Sprintf("ublk: device %d, queue %d, tag %d: the driver refuses the command: %v", q.dev.info.ID, q.index, r.tag, unix.Errno(-res)))
		}
		q.gone++
		return
	}
	d := (*ioDesc)(unsafe.Add(q.descs, int(r.tag)*int(unsafe.Sizeof(ioDesc{}))))
	r.flags = d.opFlags
	op := Op(d.opFlags)
	r.op = op
	r.off = int64(d.startSector) << sectorShift
	r.n = int(d.nrSectors) << sectorShift
	r.User = 0
	r.owner = ownedByHandler
	if op >= opCount || q.allowed>>op&1 == 0 {
		q.refuse(r)
		return
	}
	q.ops[op]++
	q.handler.Begin(r)
}

// refuse answers what the handler need not know of: the kernel warns of writes to
// a read-only device and sends them all the same.
func (q *Queue) refuse(r *Request) {
	errno := unix.EOPNOTSUPP
	if q.dev.cfg.ReadOnly && (r.op == OpWrite || r.op == OpDiscard || r.op == OpWriteZeroes) {
		errno = unix.EROFS
	}
	q.commit(r, errno)
}

// report publishes the counters that have moved.
func (q *Queue) report() {
	s := &q.reported
	for i := range q.ops {
		// Only this thread writes, so that the load is no more than a move.
		if n := q.ops[i]; n != s.ops[i].Load() {
			s.ops[i].Store(n)
		}
	}
	if q.wakeups != s.wakeups.Load() {
		s.wakeups.Store(q.wakeups)
	}
	if q.bounces != s.bounces.Load() {
		s.bounces.Store(q.bounces)
	}
}
