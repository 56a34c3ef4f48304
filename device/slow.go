package device

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/ublk"
)

// serve is the slow way of a request: plain calls that may block.
func (d *Device) serve(r *ublk.Request, q *queue) {
	d.finish(r, q, d.attemptOrPark(r))
}

// attemptOrPark does the request, and waits for space where there is none.
func (d *Device) attemptOrPark(r *ublk.Request) error {
	err := d.attempt(r)
	if noSpace(err) {
		err = d.park(r, err)
	}
	return err
}

// flush ends a FLUSH, or a write that asked for one, by the stack's own.
func (d *Device) flush(r *ublk.Request, q *queue) {
	d.finish(r, q, d.stack.Flush())
}

// failed decides about a request whose transfer on the ring failed. What may
// be cured by waiting or by other means is tried again the slow way.
func (d *Device) failed(r *ublk.Request, q *queue, state uint64, errno unix.Errno) {
	err := fmt.Errorf("%s at offset %d of %s: %w", r.Op(), r.Offset(), d.Path(), errno)
	if state == stateSync {
		// A sync that failed may have lost data; one that now succeeds would
		// not bring it back.
		d.finish(r, q, err)
		return
	}
	if noSpace(err) {
		err = d.park(r, err)
	} else if errno == unix.EINVAL {
		// The file system wants an alignment that this request lacks.
		err = d.attemptOrPark(r)
	}
	d.finish(r, q, err)
}

// attempt does the whole request once.
func (d *Device) attempt(r *ublk.Request) error {
	switch r.Op() {
	case ublk.OpRead:
		b := d.buffers.Get().(*[]byte)
		defer d.buffers.Put(b)
		p := (*b)[:r.Len()]
		if _, err := d.stack.ReadAt(p, r.Offset()); err != nil {
			return err
		}
		return r.WritePayload(p, 0)
	case ublk.OpWrite:
		b := d.buffers.Get().(*[]byte)
		defer d.buffers.Put(b)
		p := (*b)[:r.Len()]
		if err := r.ReadPayload(p, 0); err != nil {
			return err
		}
		if _, err := d.stack.WriteAt(p, r.Offset()); err != nil {
			return err
		}
		if r.FUA() {
			return d.stack.Flush()
		}
		return nil
	case ublk.OpFlush:
		return d.stack.Flush()
	case ublk.OpDiscard:
		return d.stack.Discard(r.Offset(), int64(r.Len()))
	case ublk.OpWriteZeroes:
		if err := d.stack.WriteZeroes(r.Offset(), int64(r.Len()), r.NoUnmap()); err != nil {
			return err
		}
		if r.FUA() {
			return d.stack.Flush()
		}
		return nil
	}
	return unix.EOPNOTSUPP
}

func (d *Device) finish(r *ublk.Request, q *queue, err error) {
	q.stats.ended.Add(1)
	if err == nil {
		d.spaceFound()
		r.Complete(0)
		return
	}
	q.stats.errors.Add(1)
	d.ioErrors.Error().Err(err).Str("op", r.Op().String()).Int64("offset", r.Offset()).Int("length", r.Len()).Msg("request failed")
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

func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// parkTime is how long a request without space waits before it is tried again:
// dm-ploop's interval.
const parkTime = 20 * time.Second

// park keeps a request for which the storage has no space, and tries it again
// until it has or the device is removed.
func (d *Device) park(r *ublk.Request, err error) error {
	if d.parked.Add(1) == 1 {
		d.tell(EventParked, "%v; requests wait, are tried again every %v, and go on when space is freed", err, parkTime)
	}
	defer func() {
		if d.parked.Add(-1) == 0 {
			d.tell(EventUnparked, "no request waits for space any more")
		}
	}()
	for {
		t := time.NewTimer(parkTime)
		select {
		case <-t.C:
		case <-d.spaceSignal():
			t.Stop()
		case <-d.closing:
			t.Stop()
			return fmt.Errorf("device is being removed: %w", unix.EIO)
		}
		if err := d.attempt(r); !noSpace(err) {
			return err
		}
	}
}

func (d *Device) spaceSignal() <-chan struct{} {
	d.spaceMu.Lock()
	defer d.spaceMu.Unlock()
	return d.space
}

// spaceFound wakes what is parked: another request was just served, perhaps a
// discard.
func (d *Device) spaceFound() {
	if d.parked.Load() == 0 {
		return
	}
	d.spaceMu.Lock()
	close(d.space)
	d.space = make(chan struct{})
	d.spaceMu.Unlock()
}
