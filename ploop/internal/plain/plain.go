// Package plain opens files without the runtime's poller.
package plain

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// File is an open file by its descriptor.
//
// Whatever may lie on an image's storage is opened as one, and never by package
// os: that registers files with the runtime's poller, and epoll_ctl(2) asks the
// file at once, on a thread that the scheduler doesn't know to be waiting. A FUSE
// server that leaves FUSE_POLL unanswered would stop the whole process at its next
// garbage collection, beyond the reach of SIGKILL.
type File struct {
	FD   int // -1: none
	name string
}

// Open is open(2), with O_CLOEXEC.
func Open(name string, flags int, perm uint32) (f File, err error) {
	f = File{FD: -1, name: name}
	err = Retry(func() error {
		f.FD, err = unix.Open(name, flags|unix.O_CLOEXEC, perm)
		return err
	})
	return f, err
}

// Name is the one that the file was opened by.
func (f *File) Name() string { return f.name }

// ReadAt fills p or says why not; past the end that is io.ErrUnexpectedEOF.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		n, err := f.ReadOnce(p[done:], off+int64(done))
		if done += n; err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.ErrUnexpectedEOF
		}
	}
	return len(p), nil
}

// ReadOnce is pread(2), which may read less than asked.
func (f *File) ReadOnce(p []byte, off int64) (n int, err error) {
	err = Retry(func() error {
		n, err = unix.Pread(f.FD, p, off)
		return err
	})
	return max(n, 0), err
}

// WriteAt writes all of p or says why not.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		n, err := unix.Pwrite(f.FD, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		case n == 0:
			return done, fmt.Errorf("%w: %w", io.ErrShortWrite, unix.EIO)
		default:
			done += n
		}
	}
	return len(p), nil
}

// Sync makes the data durable, and of the metadata what finds it.
func (f *File) Sync() error {
	return Retry(func() error { return unix.Fdatasync(f.FD) })
}

// Truncate is ftruncate(2).
func (f *File) Truncate(size int64) error {
	return Retry(func() error { return unix.Ftruncate(f.FD, size) })
}

// Close is close(2).
func (f *File) Close() error { return unix.Close(f.FD) }

// Retry calls f until no signal has interrupted it.
func Retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// Unsupported says that the storage lacks an operation.
func Unsupported(err error) bool {
	return err == unix.EOPNOTSUPP || err == unix.ENOSYS
}
