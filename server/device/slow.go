package device

import (
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/internal/failpoint"
	"holdfast/ploop/stack"
	"holdfast/standby"
	"holdfast/ublk"
)

// slowPath is the way of requests that the fast one can't serve, by workers that may block.
type slowPath struct{ *Device }

// slowly gives a request to the slow way. It runs on the queue's thread.
func (d slowPath) slowly(r *ublk.Request, q *queue, c class) {
	q.stats.slow.Add(1)
	r.User = stateAgain // when it comes back to the queue's thread
	d.submit(d.job(r, q, c))
}

// job readies a tag's job.
func (d slowPath) job(r request, q *queue, c class) *job {
	j := &q.jobs[r.Tag()]
	*j = job{r: r, q: q, class: c}
	if c == reading || c == changing {
		size := uint64(q.stack.ClusterSize())
		j.first, j.last = uint64(r.Offset())/size, uint64(r.Offset()+int64(max(r.Len(), 1))-1)/size
	}
	return j
}

// submit gives a job to a worker, or has it wait for one.
func (d slowPath) submit(j *job) {
	g := d.gen.Load()
	switch g.pool.add(j, d.gate.Closed) {
	case started:
		go d.work(g, j)
	case refused:
		d.again(j)
	}
}

// work is a worker: plain calls that may block, as long as there are jobs.
func (d slowPath) work(g *generation, j *job) {
	for c := j.class; j != nil; j = g.pool.next(c) {
		v, err := d.try(g, j)
		behind := g.pool.done(j)
		d.settle(j, v, err)
		d.allAgain(behind)
	}
}

// try does a job once, and says what comes of its request.
func (d slowPath) try(g *generation, j *job) (standby.Verdict, error) {
	if j.class == judging {
		return d.judgeTransfer(j)
	}
	// What would be held if it began now isn't tried; perhaps it has waited for long.
	if d.gate.Closed() || !g.enter() {
		return standby.Hold, nil
	}
	w := &j.q.slow[j.r.Tag()]
	w.in.Store(g)
	err := d.attempt(g.stack, j)
	w.in.Store(nil)
	return j.erred(d.epochs.leave(g, err, j.q.erred[j.r.Tag()]), err), err
}

// judgeTransfer decides about a request whose transfer on the ring failed.
func (d slowPath) judgeTransfer(j *job) (standby.Verdict, error) {
	f := &j.failed
	err := fmt.Errorf("%s of %s, in %q: %w", subject(j.r.Op(), j.r.Offset(), f.sync), d.Path(), f.g.stack.Status().Images[f.level].Path, f.errno)
	p := f.place(j.r.Op())
	answers := d.epochs.answers(f.g, err, p, j.q.erred[j.r.Tag()])
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	return j.erred(d.epochs.judge(f.g, err, p, answers), err), err
}

// erred remembers that the job's request is held for an error of its own.
func (j *job) erred(v standby.Verdict, err error) standby.Verdict {
	if v == standby.Hold && err != nil {
		j.q.erred[j.r.Tag()] = true
	}
	return v
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

// settle does with a request what was decided: it is completed, parked, or begins anew, which
// may mean that it is held. The job is not the caller's any more.
func (d slowPath) settle(j *job, v standby.Verdict, err error) {
	switch {
	case v == standby.Hold:
		d.again(j)
	case v == standby.Fail:
		d.finish(j, fmt.Errorf("%w (after %w)", errNoMoreHolding, err))
	case noSpace(err) && j.class != judging:
		d.parker.park(j, err)
	default:
		d.finish(j, err)
	}
}

// again has a job's request begin anew.
func (d slowPath) again(j *job) {
	d.parker.unpark(j, false)
	j.again()
}

func (d slowPath) allAgain(l jobs) {
	for j := l.pop(); j != nil; j = l.pop() {
		d.again(j)
	}
}

// clearWaiting has everything begin anew that waits for a worker or for space: the gate is
// closed, and it is to be held there.
func (d slowPath) clearWaiting() {
	d.allAgain(d.gen.Load().pool.empty(false))
	d.allAgain(d.parking.empty())
}

// errNoMoreHolding ends requests of a device whose standby has timed out, or that is
// being removed.
var errNoMoreHolding = fmt.Errorf("device holds no requests any more: %w", unix.EIO)

// attempt does all that a job asks for once.
func (d slowPath) attempt(s *stack.Stack, j *job) error {
	r := j.r
	switch op := r.Op(); {
	case op == ublk.OpFlush || j.class == flushing:
		return s.Flush()
	case op == ublk.OpRead:
		if p := r.Buffer(); p != nil {
			_, err := s.ReadAt(p, r.Offset())
			return err
		}
		p, done := buffer(r.Len())
		defer done()
		if _, err := s.ReadAt(p, r.Offset()); err != nil {
			return err
		}
		return payloadError(r.WritePayload(p, 0))
	case op == ublk.OpWrite:
		p := r.Buffer()
		if p == nil {
			b, done := buffer(r.Len())
			defer done()
			if err := r.ReadPayload(b, 0); err != nil {
				return payloadError(err)
			}
			p = b
		}
		if _, err := s.WriteAt(p, r.Offset()); err != nil {
			return err
		}
		return d.flushIf(r.FUA(), s)
	case op == ublk.OpDiscard:
		return s.Discard(r.Offset(), int64(r.Len()))
	case op == ublk.OpWriteZeroes:
		if err := s.WriteZeroes(r.Offset(), int64(r.Len()), r.NoUnmap()); err != nil {
			return err
		}
		return d.flushIf(r.FUA(), s)
	}
	return unix.EOPNOTSUPP
}

func (d slowPath) flushIf(fua bool, s *stack.Stack) error {
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

// finish completes a job's request.
func (d slowPath) finish(j *job, err error) {
	r, q := j.r, j.q
	d.parker.unpark(j, err == nil)
	q.ended(r.Tag(), r.Op())
	failpoint.Hit("commit")
	if err == nil {
		r.Complete(0)
		return
	}
	q.stats.errors.Add(1)
	line := d.ioErrors.Error().Err(err).Str("op", r.Op().String())
	if r.Op() != ublk.OpFlush {
		line = line.Int64("offset", r.Offset()).Int("length", r.Len())
	}
	line.Msg("request failed")
	d.event(api.Event{Time: time.Now(), Device: d.spec.Name, Kind: api.EventIOError, Message: err.Error()})
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
