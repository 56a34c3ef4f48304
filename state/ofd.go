package state

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// setLock takes a lock on one byte for the open file, or turns one that it has into another
// kind, without waiting. The byte need not be there.
func setLock(file *os.File, kind int16, at int64) error {
	return onFd(file, func(fd uintptr) error {
		return unix.FcntlFlock(fd, unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: at, Len: 1})
	})
}

// locked says that a lock was refused, as somebody has it.
func locked(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) }

// isLocked is where in a range another open file has a lock of any kind, -1: nowhere. To ask
// takes nothing, so nobody else's attempt fails by it.
func isLocked(file *os.File, at, length int64) int64 {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: at, Len: length}
	if err := onFd(file, func(fd uintptr) error { return unix.FcntlFlock(fd, unix.F_OFD_GETLK, &lock) }); err != nil || lock.Type == unix.F_UNLCK {
		return -1
	}
	return max(lock.Start, at)
}

// onFd does something with a file's descriptor, without making it blocking as Fd does.
func onFd(file *os.File, do func(fd uintptr) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = do(fd) }); err != nil {
		return err
	}
	return failed
}
