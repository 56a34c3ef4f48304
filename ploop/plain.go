package ploop

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// plainFile is an open file by its descriptor.
//
// Whatever may lie on an image's storage is opened as one, and never by package
// os: that registers files with the runtime's poller, and epoll_ctl(2) asks the
// file at once, on a thread that the scheduler doesn't know to be waiting. A FUSE
// server that leaves FUSE_POLL unanswered would stop the whole process at its next
// garbage collection, beyond the reach of SIGKILL.
type plainFile struct {
	fd   int
	name string
}

// openPlain is open(2), with O_CLOEXEC.
func openPlain(name string, flags int, perm uint32) (f plainFile, err error) {
	f = plainFile{fd: -1, name: name}
	err = retry(func() error {
		f.fd, err = unix.Open(name, flags|unix.O_CLOEXEC, perm)
		return err
	})
	return f, err
}

func (f *plainFile) Name() string { return f.name }

// ReadAt fills p or says why not; past the end that is io.ErrUnexpectedEOF.
func (f *plainFile) ReadAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		n, err := f.readOnce(p[done:], off+int64(done))
		if done += n; err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.ErrUnexpectedEOF
		}
	}
	return len(p), nil
}

func (f *plainFile) readOnce(p []byte, off int64) (n int, err error) {
	err = retry(func() error {
		n, err = unix.Pread(f.fd, p, off)
		return err
	})
	return max(n, 0), err
}

func (f *plainFile) WriteAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
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
func (f *plainFile) Sync() error {
	return retry(func() error { return unix.Fdatasync(f.fd) })
}

func (f *plainFile) Truncate(size int64) error {
	return retry(func() error { return unix.Ftruncate(f.fd, size) })
}

func (f *plainFile) Close() error { return unix.Close(f.fd) }

func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// unsupported says that the storage lacks an operation.
func unsupported(err error) bool {
	return err == unix.EOPNOTSUPP || err == unix.ENOSYS
}
