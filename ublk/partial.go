package ublk

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// io_uring asks for the rest of a transfer that came short by itself, and says at the end
// that all is well. It goes by the position that the file system left in the kiocb, and
// FUSE leaves it alone where its server has declared the file for direct I/O (seen on 6.12,
// 6.18 and 7.2: fuse_direct_IO, for files with O_DIRECT, and on 7.2 for any read). The rest
// then goes to the place, or comes from it, where the transfer began: the data is
// shifted, and nobody told.
//
// A file with O_NONBLOCK that can't do without blocking is given one attempt, so that we
// see what came, and go on from there. Whether it can, the ring finds out when the file is
// registered, and O_NONBLOCK counts as that it can. So the flag is taken away for the
// registering and set after it. It does nothing to other users of the descriptor, as
// reads and writes of files don't look at it.
//
// What one attempt may not do (a write past the page cache where that has a page of the
// file; all writes without O_DIRECT) ends with EAGAIN, and begins no better again.

// oneAttempt makes io_uring try transfers of a file only once, or lets it be
// registered.
func oneAttempt(fd int, on bool) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("flags of descriptor %d: %w", fd, err)
	}
	want := flags &^ unix.O_NONBLOCK
	if on {
		want |= unix.O_NONBLOCK
	}
	if want == flags {
		return nil
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, want); err != nil {
		return fmt.Errorf("setting flags of descriptor %d: %w", fd, err)
	}
	return nil
}

// blocking says whether the slot's file is one that blocksInline speaks of.
func (q *Queue) blocking(slot int32) bool { return int(slot) < len(q.worker) && q.worker[slot] }
