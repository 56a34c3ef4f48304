package ublk

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// ReadPayload copies len(p) bytes of a WRITE, from off bytes into it, to p. From any
// goroutine while the handler owns the request.
func (r *Request) ReadPayload(p []byte, off int) error {
	if err := r.checkPayload(OpWrite, len(p), off); err != nil {
		return err
	}
	if !r.queue.zeroCopy {
		copy(p, r.Buffer()[off:])
		return nil
	}
	if errno := r.pagesTo(p, off); errno != 0 {
		return fmt.Errorf("ublk: read payload of %v from /dev/ublkc%d: %w", r, r.queue.dev.info.ID, errno)
	}
	return nil
}

// WritePayload copies p into the pages of a READ, off bytes into it. From any
// goroutine while the handler owns the request.
func (r *Request) WritePayload(p []byte, off int) error {
	if err := r.checkPayload(OpRead, len(p), off); err != nil {
		return err
	}
	if !r.queue.zeroCopy {
		copy(r.Buffer()[off:], p)
		return nil
	}
	if errno := r.pagesFrom(p, off); errno != 0 {
		return fmt.Errorf("ublk: write payload of %v to /dev/ublkc%d: %w", r, r.queue.dev.info.ID, errno)
	}
	return nil
}

func (r *Request) checkPayload(op Op, n, off int) error {
	if r.op != op {
		return fmt.Errorf("ublk: %v has no payload to move this way", r)
	}
	if off < 0 || n > r.n-off {
		return fmt.Errorf("ublk: payload bytes %d to %d of %v", off, off+n, r)
	}
	return nil
}

// ZeroFill fills all of a READ's pages with zeroes. Queue's thread, or any goroutine
// that owns the request.
func (r *Request) ZeroFill() unix.Errno { return r.ZeroFillRange(0, r.n) }

// ZeroFillRange fills n bytes of a READ with zeroes, off bytes into it.
func (r *Request) ZeroFillRange(off, n int) unix.Errno {
	if r.op != OpRead || off < 0 || n < 0 || n > r.n-off {
		return unix.EINVAL
	}
	if !r.queue.zeroCopy {
		clear(r.Buffer()[off : off+n])
		return 0
	}
	// All of the source is one zero page, so this costs little more than
	// clearing; and unlike a read of /dev/zero it is done when it returns.
	return r.pagesFrom(r.queue.dev.zeroes[:n], off)
}

// pagesTo copies from a WRITE's pages by reading /dev/ublkcN.
func (r *Request) pagesTo(p []byte, off int) unix.Errno { return r.userCopy(unix.Pread, p, off) }

// pagesFrom copies to a READ's pages by writing /dev/ublkcN.
func (r *Request) pagesFrom(p []byte, off int) unix.Errno { return r.userCopy(unix.Pwrite, p, off) }

func (r *Request) userCopy(move func(fd int, p []byte, off int64) (int, error), p []byte, off int) unix.Errno {
	pos := userCopyOffset(r.queue.index, int(r.tag)) + int64(off)
	for len(p) > 0 {
		n, err := move(r.queue.fd, p, pos)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err.(unix.Errno)
		}
		if n == 0 {
			return unix.EIO
		}
		p, pos = p[n:], pos+int64(n)
	}
	return 0
}
