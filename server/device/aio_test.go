package device

import (
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
)

// aio has many requests under way at a disk, with no thread waiting for each: the
// kernel's native AIO.
type aio struct {
	t      testing.TB
	ctx    uintptr
	fd     rawDisk
	out    map[uint64]*iocb
	failed int
	flags  uint32 // of those that are submitted
}

// iocb and ioEvent are of linux/aio_abi.h.
type iocb struct {
	data   uint64
	_      uint32 // key
	flags  uint32 // of the read or write, RWF_*
	opcode uint16
	_      int16 // priority
	fd     uint32
	buf    uint64
	nbytes uint64
	off    int64
	_      uint64
	_      [2]uint32 // flags, descriptor of an eventfd

	p []byte // not the kernel's: what buf points to
}

type ioEvent struct {
	data uint64
	_    uint64 // the iocb
	res  int64
	_    int64
}

const (
	iocbRead  = 0 // IOCB_CMD_PREAD
	iocbWrite = 1 // IOCB_CMD_PWRITE
)

func newAIO(t testing.TB, fd rawDisk, n int) *aio {
	t.Helper()
	a := &aio{t: t, fd: fd, out: map[uint64]*iocb{}}
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(n), uintptr(unsafe.Pointer(&a.ctx)), 0); errno != 0 {
		t.Fatalf("io_setup: %v", errno)
	}
	t.Cleanup(func() { unix.Syscall(unix.SYS_IO_DESTROY, a.ctx, 0, 0) })
	return a
}

// submit begins a request for a block. version is that of a write.
func (a *aio) submit(op uint16, block, version uint64) {
	a.t.Helper()
	c := &iocb{data: block, opcode: op, flags: a.flags, fd: uint32(a.fd), nbytes: blockSize, off: int64(block) * blockSize, p: ploop.AlignedBuffer(blockSize)}
	fill(c.p, block, version)
	c.buf = uint64(uintptr(unsafe.Pointer(&c.p[0]))) // the heap doesn't move, and out keeps it
	list := [1]*iocb{c}
	a.out[block] = c
	if n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, a.ctx, 1, uintptr(unsafe.Pointer(&list))); n != 1 || errno != 0 {
		a.t.Fatalf("io_submit: %d, %v", n, errno)
	}
}

// ended takes the requests that have ended, and says how many are left. A result
// for what wasn't under way, twice, say, is fatal.
func (a *aio) ended() int {
	a.t.Helper()
	var events [64]ioEvent
	n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, a.ctx, 0, uintptr(len(events)), uintptr(unsafe.Pointer(&events)), uintptr(unsafe.Pointer(&unix.Timespec{})), 0)
	switch errno {
	case 0:
	case unix.EINTR: // by the runtime's signals, and with none that has ended
		return len(a.out)
	default:
		a.t.Fatalf("io_getevents: %v", errno)
	}
	for _, e := range events[:n] {
		if a.out[e.data] == nil {
			a.t.Fatalf("block %d: ended twice", e.data)
		}
		delete(a.out, e.data)
		if e.res != blockSize {
			a.failed++
		}
	}
	return len(a.out)
}

// all waits until all have ended, and says how many failed.
func (a *aio) all() int {
	a.t.Helper()
	for end := time.Now().Add(2 * time.Minute); a.ended() > 0; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			a.t.Fatalf("%d requests don't end", len(a.out))
		}
	}
	return a.failed
}
