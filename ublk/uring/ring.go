package uring

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrDisabled is returned by New when the sysctl kernel.io_uring_disabled (or a
// seccomp filter) forbids io_uring to this process.
var ErrDisabled = errors.New("io_uring is disabled for this process: see the sysctl kernel.io_uring_disabled (0 allows it) and the seccomp profile of the container")

// ErrUnsupported is returned by New on a kernel that lacks what a Ring needs.
var ErrUnsupported = errors.New("this kernel's io_uring is too old: Linux 6.1 or later is needed")

// Params says how large a ring is to be.
type Params struct {
	// Entries is the number of submission entries, rounded up to a power of
	// two by the kernel, at most 32768. A caller that never has more than this
	// many unsubmitted entries never sees GetSQE return nil.
	Entries int
	// CQEntries is the number of completion entries, at least Entries, at most
	// 65536. 0 takes twice the submission entries. Give room for every operation
	// in flight: the kernel keeps what does not fit, but slowly.
	CQEntries int
	// SQE128 doubles submission entries to 128 bytes, of which 80 are the
	// command of a URING_CMD.
	SQE128 bool
}

// Ring is one io_uring. See the package documentation for the rules of use.
type Ring struct {
	// What every turn touches comes first.
	sqHead, sqTailK *uint32
	sqes            unsafe.Pointer
	sqTail          uint32 // our tail; the kernel's copy is written at submission
	sqMask          uint32
	sqEntries       uint32
	sqeShift        uint8

	cqHeadK, cqTail *uint32
	cqes            unsafe.Pointer
	cqHead          uint32
	cqMask          uint32

	enterFd    uintptr // ring fd, or its index where the ring is registered
	enterFlags uintptr

	fd       int
	mem      []byte
	sqeMem   []byte
	features uint32
	setup    uint32

	wait   *waitArg
	pinner runtime.Pinner
}

// waitArg is what a wait with a timeout passes by address; it is pinned, as arg
// holds the address of ts as a number.
type waitArg struct {
	arg geteventsArg
	ts  kernelTimespec
	fds [2]uint64 // scratch for registrations
	reg rsrcRegister
	upd rsrcUpdate
}

// New sets a ring up for the calling thread, which must be locked
// (runtime.LockOSThread) until Close.
func New(p Params) (*Ring, error) {
	if p.Entries < 1 || p.Entries > 32768 {
		return nil, fmt.Errorf("uring: %d submission entries asked for: 1 to 32768 can be had", p.Entries)
	}
	flags := uint32(setupSubmitAll | setupSingleIssuer | setupDeferTaskrun | setupNoSQArray)
	if p.SQE128 {
		flags |= setupSQE128
	}
	if p.CQEntries > 0 {
		flags |= setupCQSize
	}
	var sp setupParams
	fd, errno := setup(p, flags, &sp)
	if errno == unix.EINVAL {
		// NO_SQARRAY came with 6.6.
		flags &^= setupNoSQArray
		fd, errno = setup(p, flags, &sp)
	}
	if errno != 0 {
		return nil, setupError(errno)
	}
	r := &Ring{fd: fd, setup: flags, features: sp.features, enterFd: uintptr(fd)}
	if err := r.mmap(&sp); err != nil {
		unix.Close(fd)
		return nil, err
	}
	r.wait = &waitArg{}
	r.pinner.Pin(r.wait)
	r.wait.arg.ts = uint64(uintptr(unsafe.Pointer(&r.wait.ts)))
	return r, nil
}

func setup(p Params, flags uint32, sp *setupParams) (int, unix.Errno) {
	*sp = setupParams{flags: flags, cqEntries: uint32(p.CQEntries)}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(p.Entries), uintptr(unsafe.Pointer(sp)), 0)
	return int(fd), errno
}

func setupError(errno unix.Errno) error {
	switch errno {
	case unix.ENOSYS:
		return fmt.Errorf("uring: setup: %w", ErrUnsupported)
	case unix.EPERM:
		b, err := os.ReadFile("/proc/sys/kernel/io_uring_disabled")
		if err == nil && strings.TrimSpace(string(b)) == "0" {
			return fmt.Errorf("uring: setup: %w: the sysctl allows it, so it is the seccomp profile or a security module", errno)
		}
		return fmt.Errorf("uring: setup: %w", ErrDisabled)
	case unix.EINVAL:
		return fmt.Errorf("uring: setup: %w: %w", errno, ErrUnsupported)
	}
	return fmt.Errorf("uring: setup: %w", errno)
}

func (r *Ring) mmap(sp *setupParams) error {
	const need = featSingleMmap | featNoDrop | featExtArg
	if sp.features&need != need {
		return fmt.Errorf("uring: features %#x: %w", sp.features, ErrUnsupported)
	}
	if r.setup&setupSQE128 != 0 {
		r.sqeShift = 7
	} else {
		r.sqeShift = 6
	}
	size := int(sp.cqOff.cqes) + int(sp.cqEntries)*int(unsafe.Sizeof(CQE{}))
	if r.setup&setupNoSQArray == 0 {
		size = max(size, int(sp.sqOff.array)+int(sp.sqEntries)*4)
	}
	mem, err := unix.Mmap(r.fd, offSQRing, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("uring: map the rings (%d bytes): %w", size, err)
	}
	sqeMem, err := unix.Mmap(r.fd, offSQEs, int(sp.sqEntries)<<r.sqeShift, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		unix.Munmap(mem)
		return fmt.Errorf("uring: map the submission entries: %w", err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&mem[off])) }
	r.mem, r.sqeMem = mem, sqeMem
	r.sqHead, r.sqTailK = at(sp.sqOff.head), at(sp.sqOff.tail)
	r.sqMask, r.sqEntries = *at(sp.sqOff.ringMask), *at(sp.sqOff.ringEntries)
	r.sqes = unsafe.Pointer(&sqeMem[0])
	r.sqTail = atomic.LoadUint32(r.sqTailK)
	if r.setup&setupNoSQArray == 0 {
		// Entries are used in ring order, so the indirection stays the identity.
		for i := uint32(0); i < r.sqEntries; i++ {
			*at(sp.sqOff.array + 4*i) = i
		}
	}
	r.cqHeadK, r.cqTail, r.cqMask = at(sp.cqOff.head), at(sp.cqOff.tail), *at(sp.cqOff.ringMask)
	r.cqes = unsafe.Pointer(&mem[sp.cqOff.cqes])
	r.cqHead = atomic.LoadUint32(r.cqHeadK)
	return nil
}

// Close gives the ring back. The kernel cancels what is still in flight and may
// go on using its buffers for a moment after Close has returned: reap first.
func (r *Ring) Close() error {
	if r.fd < 0 {
		return nil
	}
	if r.enterFlags&enterRegisteredRing != 0 {
		r.unregisterRing()
	}
	err := errors.Join(unix.Munmap(r.sqeMem), unix.Munmap(r.mem), unix.Close(r.fd))
	r.fd = -1
	r.pinner.Unpin()
	return err
}

// GetSQE returns the next free submission entry, zeroed, or nil when the queue is
// full: Submit, then ask again.
func (r *Ring) GetSQE() *SQE {
	tail := r.sqTail
	if tail-atomic.LoadUint32(r.sqHead) >= r.sqEntries {
		return nil
	}
	p := unsafe.Add(r.sqes, uintptr(tail&r.sqMask)<<r.sqeShift)
	if r.sqeShift == 7 {
		*(*[128]byte)(p) = [128]byte{}
	} else {
		*(*SQE)(p) = SQE{}
	}
	r.sqTail = tail + 1
	return (*SQE)(p)
}

// Pending is the number of entries that were got and not yet submitted.
func (r *Ring) Pending() int { return int(r.sqTail - atomic.LoadUint32(r.sqHead)) }

// Submit hands every pending entry to the kernel and does not wait. It returns
// the number the kernel took: fewer than were pending with err nil means that
// the rest is to be tried again. EAGAIN (no memory for the requests) and EBUSY
// (the completion queue overflowed) ask to drain completions first.
func (r *Ring) Submit() (int, error) { return r.enter(0, 0) }

// SubmitAndWait submits like Submit and waits for n completions to be there,
// counting those that are there already. timeout < 0 waits without limit. A
// signal and a timeout end the wait early and are no errors; look at the
// completions and call again. With n = 0 it only runs the kernel's deferred
// completion work.
func (r *Ring) SubmitAndWait(n int, timeout time.Duration) (int, error) {
	if timeout < 0 || n == 0 {
		return r.enter(uint32(n), enterGetEvents)
	}
	r.wait.ts.sec = int64(timeout / time.Second)
	r.wait.ts.nsec = int64(timeout % time.Second)
	return r.enter(uint32(n), enterGetEvents|enterExtArg)
}

func (r *Ring) enter(n uint32, flags uintptr) (int, error) {
	toSubmit := r.sqTail - atomic.LoadUint32(r.sqHead)
	if toSubmit == 0 && flags == 0 {
		return 0, nil
	}
	atomic.StoreUint32(r.sqTailK, r.sqTail)
	var arg, size uintptr
	if flags&enterExtArg != 0 {
		arg, size = uintptr(unsafe.Pointer(&r.wait.arg)), unsafe.Sizeof(r.wait.arg)
	}
	got, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, r.enterFd, uintptr(toSubmit), uintptr(n), flags|r.enterFlags, arg, size)
	if errno != 0 {
		if errno == unix.EINTR || errno == unix.ETIME {
			return 0, nil
		}
		return 0, errno
	}
	return int(got), nil
}

// Peek returns the oldest completion, or nil when there is none. It stays the
// oldest until Advance.
func (r *Ring) Peek() *CQE {
	if r.cqHead == atomic.LoadUint32(r.cqTail) {
		return nil
	}
	return r.At(0)
}

// Advance gives the entry that Peek showed back to the kernel.
func (r *Ring) Advance() { r.Consume(1) }

// Ready is the number of completions that are there. With At and Consume a loop
// takes them all for two memory barriers:
//
//	n := r.Ready()
//	for i := range n {
//		cqe := r.At(i)
//		…
//	}
//	r.Consume(n)
func (r *Ring) Ready() int { return int(atomic.LoadUint32(r.cqTail) - r.cqHead) }

// At returns the i-th completion of those that Ready counted.
func (r *Ring) At(i int) *CQE {
	return (*CQE)(unsafe.Add(r.cqes, uintptr((r.cqHead+uint32(i))&r.cqMask)*unsafe.Sizeof(CQE{})))
}

// Consume gives the n oldest completions back to the kernel.
func (r *Ring) Consume(n int) {
	r.cqHead += uint32(n)
	atomic.StoreUint32(r.cqHeadK, r.cqHead)
}
