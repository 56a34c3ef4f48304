package ublk

import (
	"errors"
	"fmt"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SetFile puts a file into a slot of every queue's registered table, or empties it
// with fd -1, and returns when every queue has taken it over: transfers begun from
// then on use it. Those in flight keep the file they began with; what would have
// to go on or begin anew (it came short, was interrupted, waited for memory) ends with
// ESTALE, as its place is one in the other file. The tables hold references of their own;
// the caller may close fd. A file whose transfers would block the queue (FUSE) gets
// O_NONBLOCK; transfers of one that is in a slot already must not begin meanwhile. Before or
// after Start, and not on a queue's thread. ErrStopped when the queues have ended.
func (d *Device) SetFile(slot, fd int) error {
	if slot < 0 || slot >= d.cfg.Files {
		return &ConfigError{"Files", fmt.Sprintf("slot %d of a table of %d", slot, d.cfg.Files)}
	}
	if fd < -1 || fd > math.MaxInt32 {
		return fmt.Errorf("ublk: device %d: file slot %d: %d is no descriptor", d.info.ID, slot, fd)
	}
	errs := make([]error, len(d.queues))
	worker := blocksInline(fd)
	if worker {
		if err := oneAttempt(fd, false); err != nil {
			return fmt.Errorf("ublk: device %d: file slot %d: %w", d.info.ID, slot, err)
		}
	}
	err := d.OnQueues(func(q *Queue) {
		if q.worker == nil {
			q.worker, q.changes = make([]bool, d.cfg.Files), make([]uint32, d.cfg.Files)
		}
		q.worker[slot] = worker
		q.changes[slot]++
		errs[q.index] = q.ring.UpdateFile(slot, fd)
	})
	if worker {
		err = errors.Join(err, oneAttempt(fd, true))
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("ublk: device %d: %w", d.info.ID, err)
	}
	return nil
}

// blocksInline says whether a transfer must go to one of io_uring's worker threads from
// the start. io_uring tries each on the caller's thread first, for files that say
// that they won't block there, but also for those that don't say so and can be polled:
// FUSE. Those block until the server answers, and with them the queue: a server
// that hangs would stop requests that have nothing to do with it, and the release of
// held ones.
func blocksInline(fd int) bool {
	if fd < 0 {
		return false
	}
	// Asked not to block, such a file refuses without looking further. For the
	// others any answer will do.
	const page = 4096
	b := make([]byte, 2*page)
	b = b[page-int(uintptr(unsafe.Pointer(&b[0]))%page):][:page]
	_, err := unix.Preadv2(fd, [][]byte{b}, 0, unix.RWF_NOWAIT)
	return errors.Is(err, unix.EOPNOTSUPP)
}
