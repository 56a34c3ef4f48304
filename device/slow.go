package device

import (
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/failpoint"
	"holdfast/ploop"
	"holdfast/standby"
	"holdfast/ublk"
)

// serve is the slow way of a request: plain calls that may block.
func (d *Device) serve(r *ublk.Request, q *queue) { d.run(r, q, d.attempt) }

// flush ends a FLUSH, or a write that asked for one, by the stack's own.
func (d *Device) flush(r *ublk.Request, q *queue) {
	d.run(r, q, func(s *ploop.Stack, r *ublk.Request) error { return s.Flush() })
}

// run does a request by try, and decides what comes of it: it is completed, or parked
// and tried again, or begins anew, which may mean that it is held.
func (d *Device) run(r *ublk.Request, q *queue, try func(*ploop.Stack, *ublk.Request) error) {
	parked := false
	defer func() {
		if parked {
			d.unpark()
		}
	}()
	for {
		g := d.enter()
		if g == nil {
			again(r)
			return
		}
		err := try(g.stack, r)
		v := d.leave(g, err)
		if v == standby.Pass && noSpace(err) {
			if !parked {
				parked = true
				d.park(err)
			}
			if d.waitForSpace() {
				continue
			}
			err = fmt.Errorf("device is being removed: %w", unix.EIO)
		}
		d.settle(r, q, v, err)
		return
	}
}

// failed decides about a request whose transfer on the ring failed. What may
// be cured by waiting or by other means is tried again the slow way.
func (d *Device) failed(r *ublk.Request, q *queue, g *generation, level int, state uint64, errno unix.Errno) {
	if state != stateSync && (errno == unix.EINVAL || errno == unix.EAGAIN || noSpace(errno)) {
		// The file system wants an alignment that this request lacks, or
		// can't do it without waiting, or has no space.
		d.serve(r, q)
		return
	}
	err := fmt.Errorf("%s of %s, in %q: %w", subject(r.Op(), r.Offset(), state == stateSync), d.Path(), g.stack.Status().Images[level].Path, errno)
	g.mu.Lock()
	v := d.judge(g, err)
	g.mu.Unlock()
	d.settle(r, q, v, err)
}

// subject says for a message what was being done. A FLUSH is about the whole device.
func subject(op ublk.Op, offset int64, sync bool) string {
	s := op.String()
	if sync {
		s = "sync for " + s
	}
	if op == ublk.OpFlush {
		return s
	}
	return fmt.Sprintf("%s at offset %d", s, offset)
}

// settle does with a request what was decided.
func (d *Device) settle(r *ublk.Request, q *queue, v standby.Verdict, err error) {
	switch v {
	case standby.Hold:
		again(r)
	case standby.Fail:
		d.finish(r, q, fmt.Errorf("%w (after %w)", errNoMoreHolding, err))
	default:
		d.finish(r, q, err)
	}
}

// errNoMoreHolding ends requests of a device whose standby has timed out, or that is
// being removed.
var errNoMoreHolding = fmt.Errorf("device holds no requests any more: %w", unix.EIO)

// attempt does the whole request once.
func (d *Device) attempt(s *ploop.Stack, r *ublk.Request) error {
	switch r.Op() {
	case ublk.OpRead:
		b := d.buffers.Get().(*[]byte)
		defer d.buffers.Put(b)
		p := (*b)[:r.Len()]
		if _, err := s.ReadAt(p, r.Offset()); err != nil {
			return err
		}
		return payloadError(r.WritePayload(p, 0))
	case ublk.OpWrite:
		b := d.buffers.Get().(*[]byte)
		defer d.buffers.Put(b)
		p := (*b)[:r.Len()]
		if err := r.ReadPayload(p, 0); err != nil {
			return payloadError(err)
		}
		if _, err := s.WriteAt(p, r.Offset()); err != nil {
			return err
		}
		return d.flushIf(r.FUA(), s)
	case ublk.OpFlush:
		return s.Flush()
	case ublk.OpDiscard:
		return s.Discard(r.Offset(), int64(r.Len()))
	case ublk.OpWriteZeroes:
		if err := s.WriteZeroes(r.Offset(), int64(r.Len()), r.NoUnmap()); err != nil {
			return err
		}
		return d.flushIf(r.FUA(), s)
	}
	return unix.EOPNOTSUPP
}

func (d *Device) flushIf(fua bool, s *ploop.Stack) error {
	if fua || d.through.Load() {
		return s.Flush()
	}
	return nil
}

// payloadError keeps an error of the request's own pages from being taken for one
// of the storage.
func payloadError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("the request's pages: %v", err)
}

func (d *Device) finish(r *ublk.Request, q *queue, err error) {
	q.ended(r)
	failpoint.Hit("commit")
	if err == nil {
		d.spaceFound()
		r.Complete(0)
		return
	}
	q.stats.errors.Add(1)
	line := d.ioErrors.Error().Err(err).Str("op", r.Op().String())
	if r.Op() != ublk.OpFlush {
		line = line.Int64("offset", r.Offset()).Int("length", r.Len())
	}
	line.Msg("request failed")
	d.event(Event{Time: time.Now(), Device: d.spec.Name, Kind: EventIOError, Message: err.Error()})
	r.Complete(errnoOf(err))
}

// errnoOf is what the block layer is told.
func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	if errors.As(err, &errno) && errno != 0 {
		return errno
	}
	return unix.EIO
}

// storageError is the error of the storage that err tells of. A file that ends before
// what was stored in it is storage that lost something.
func storageError(err error) (unix.Errno, bool) {
	var errno unix.Errno
	switch {
	case errors.As(err, &errno) && errno != 0:
		return errno, true
	case errors.Is(err, io.ErrUnexpectedEOF):
		return unix.EIO, true
	}
	return 0, false
}

func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
