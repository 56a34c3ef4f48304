package device

import (
	"context"
	"fmt"
	"sync"
	"time"

	"holdfast/api"
	"holdfast/standby"
	"holdfast/ublk"
)

// Attach takes a lease for a consumer, who promises that it can live with requests
// that are held. standby.ErrAttached: it has one.
func (d *Device) Attach(consumer string) error { return d.machine.Attach(consumer) }

// Detach drops a consumer's lease. standby.ErrNotAttached: it has none.
func (d *Device) Detach(consumer string) error { return d.machine.Detach(consumer) }

// SetStandby sets STANDBY by hand, or ends it without a resume: what is held then
// fails with EIO. standby.ErrNotSupported: it can't be set, a fuse is off.
func (d *Device) SetStandby(on bool) error {
	if on {
		return d.machine.Set()
	}
	d.machine.Clear("by hand")
	return nil
}

// journal takes the machine's changes from under its lock to the keeper.
type journal struct {
	mu      sync.Mutex
	list    []standby.Change
	pending chan struct{} // holds one when the list is not empty
}

// holding is what the device does in standby, and says of it.
type holding struct{ *Device }

// changed is the machine's Options.Changed. What is held is released at once; the
// rest has time.
func (d holding) changed(c standby.Change) {
	if c.Held != standby.Hold {
		d.fast.releaseHeld(c.Held == standby.Fail)
	}
	d.journal.mu.Lock()
	d.journal.list = append(d.journal.list, c)
	d.journal.mu.Unlock()
	select {
	case d.journal.pending <- struct{}{}:
	default:
	}
}

// keep is the device's own goroutine: it makes events of what the machine did, ends a hold
// that lasts too long, and tries to reopen the files.
func (d holding) keep() {
	var since time.Time // of the standby that the rest is about; zero: none
	var expire, retry <-chan time.Time
	var again, last *reopening
	for {
		select {
		case <-d.closing:
			again.stop()
			return
		case <-d.journal.pending:
			if d.gate.Closed() {
				d.slow.clearWaiting()
			}
			for _, c := range d.journal.take() {
				d.emitChange(c)
			}
			st := d.machine.Status()
			if !st.Flag || !st.Supported {
				st.Since = time.Time{}
			}
			if st.ByHand && again != nil {
				again.stop()
				again, retry = nil, nil
				d.reopenState.clear()
			}
			if st.Since.Equal(since) {
				continue
			}
			since, expire, retry = st.Since, nil, nil
			again.stop()
			again = nil
			d.reopenState.clear()
			if since.IsZero() {
				continue
			}
			if t := time.Duration(d.spec.StandbyTimeout); t > 0 {
				expire = time.After(time.Until(deadline(&st, t)))
			}
			if !st.ByHand && d.spec.Resume == api.ResumeReopen {
				if st.Spent == 0 {
					last = nil
				}
				again = newReopening(last)
				last = again
				retry = time.After(d.reopenState.next(again.delay()))
			}
		case <-expire:
			d.machine.Expire(since)
		case <-retry:
			go again.try(d.Device)
		case <-again.answered():
			// After a success the machine's change ends it.
			retry = time.After(d.reopenState.next(again.delay()))
		}
	}
}

// take empties the journal.
func (j *journal) take() []standby.Change {
	j.mu.Lock()
	defer j.mu.Unlock()
	list := j.list
	j.list = nil
	return list
}

// emitChange makes an event of one change of the machine.
func (d holding) emitChange(c standby.Change) {
	switch c.Kind {
	case standby.Entered:
		if c.Held == standby.Hold {
			d.emit(api.EventStandby, "%s; requests are held", c.Cause)
		} else {
			d.emit(api.EventStandby, "%s; nothing is held, as a fuse is off", c.Cause)
		}
	case standby.Kept:
		d.emit(api.EventKept, "standby is by hand now: it is not ended by reopening the files")
	case standby.Resumed:
		d.flowing()
		d.emit(api.EventResumed, "standby was ended %s: what was held is served", c.Cause)
	case standby.Cleared:
		d.flowing()
		if c.Held == standby.Fail {
			d.emit(api.EventCleared, "standby was ended %s, without a resume: what was held failed", c.Cause)
		} else {
			d.emit(api.EventCleared, "the mark of a standby was cleared %s; nothing was held, as a fuse was off", c.Cause)
		}
	case standby.Expired:
		d.emit(api.EventTimeout, "standby has lasted longer than its time-out of %v: requests fail until it ends", time.Duration(d.spec.StandbyTimeout))
	case standby.FoundBad:
		d.emit(api.EventBadRange, "%s: that came back after the files were opened anew, while they answer elsewhere, and is this place's own from now: it goes to its user, and nothing is held for it", c.Cause)
	case standby.Attached:
		d.emit(api.EventAttached, "%s has a lease", c.Consumer)
	case standby.Detached:
		d.emit(api.EventDetached, "%s has dropped its lease", c.Consumer)
	case standby.Inconsistent:
		d.log.Warn().Str("event", api.EventInconsistency).Str("kind", string(c.Inconsistency)).Msg(c.Inconsistency.String())
		d.event(api.Event{Time: time.Now(), Device: d.spec.Name, Kind: api.EventInconsistency, Message: string(c.Inconsistency) + ": " + c.Inconsistency.String()})
	}
	switch c.Kind {
	case standby.Attached, standby.Detached, standby.FuseChanged, standby.GateChanged: // perhaps another top
		d.setThrough()
	}
}

// setThrough decides whether writes are made durable before they are acknowledged.
//
// Where a file is served through the page cache, the kernel has a write's data when it
// says so, and forgets it when its storage fails. With errors held instead of
// told, nobody would ever hear of that. So each write goes through, while standby
// is supported: then an error meets the write itself, which is held.
func (d holding) setThrough() {
	st := d.machine.Status()
	g := d.gen.Load()
	s := g.stack
	through := false
	if st.Supported && !s.ReadOnly() {
		images := s.Status().Images
		through = images[len(images)-1].Cached
	}
	if through == d.through.Swap(through) {
		return
	}
	if d.dev.OnQueues(func(uq *ublk.Queue) { d.queues[uq.Index()].through = through }) != nil || !through {
		return
	}
	d.log.Warn().Msg("the top image is served through the page cache, and with standby each write waits until it is durable: storage with direct I/O is faster")
	// What came before has to be durable too. One that hangs is not joined by others.
	if g.through.Add(1) > 1 {
		return
	}
	go func() {
		for n := int64(0); !g.through.CompareAndSwap(n, 0); {
			if n = g.through.Load(); g.enter() {
				d.epochs.leave(g, g.stack.Flush(), false)
			}
		}
	}()
}

// flowing keeps the time from which requests flow again.
func (d holding) flowing() { d.since.Store(time.Now().UnixNano()) }

// standbyStatus is the part of Status.
func (d holding) standbyStatus() (api.StandbyStatus, standby.Reason) {
	m := d.machine.Status()
	s := api.StandbyStatus{
		Value: m.Value(), Enabled: m.Enabled, Flag: m.Flag, Consumers: m.Consumers, Expired: m.Expired,
		Stuck: d.lateCalls.Load() + d.lateTransfers.Load(), Resume: d.spec.Resume,
		Seconds: m.Stats.InStandby.Seconds(), Entered: m.Stats.Entered, Resumed: m.Stats.Resumed,
		Triggers: map[string]uint64{}, Inconsistencies: map[string]uint64{},
	}
	if s.Resume == "" {
		s.Resume = api.ResumeManual
	}
	if m.Flag {
		s.Since, s.Cause, s.ByHand = &m.Since, m.Cause, m.ByHand
		if m.Errno != 0 {
			s.Errno = api.ErrnoName(m.Errno)
		}
		if t := time.Duration(d.spec.StandbyTimeout); t > 0 && m.Supported {
			at := deadline(&m, t)
			s.Deadline = &at
		}
	}
	s.BadRanges = badRanges(m.Bad, d.gen.Load().stack.Status().Images)
	for e, n := range m.Stats.Triggers {
		s.Triggers[api.ErrnoName(e)] = n
	}
	for i, n := range m.Stats.Inconsistencies {
		s.Inconsistencies[string(i)] = n
	}
	for i := range d.queues {
		q := &d.queues[i].stats
		s.Held += q.held.Load()
		s.HeldTotal += q.holds.Load()
		s.HeldFailed += q.heldEIO.Load()
	}
	info := d.dev.Info()
	s.Tags = int64(info.Queues) * int64(info.Depth)
	s.Attempts, s.NextAttempt, s.LastError = d.reopenState.get()
	return s, m.Reasons
}

// endHolds fails what is held and what would be, for Close.
func (d holding) endHolds() {
	d.ending.Store(true)
	d.fast.releaseHeld(true)
}

// lock takes the right to change the device's files, or to close it.
func (d *Device) lock(ctx context.Context) error {
	select {
	case d.changing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("device %s: another change of its files is under way, and may hang in their storage; if so, abort its mount (umount -f, or 1 into /sys/fs/fuse/connections/N/abort): %w", d.spec.Name, ctx.Err())
	}
}

func (d *Device) unlock() { <-d.changing }
