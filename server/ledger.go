package server

import (
	"sync"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/state"
)

// A ledger keeps the device's record: who changes it changes what is known and what is in the
// state directory, in one.
type ledger struct {
	*known
	records state.Records
	log     zerolog.Logger
	leaseMu sync.Mutex // one change of the leases at a time; before recMu
	recMu   sync.Mutex // one change of the record at a time; before known's mu
}

// update changes the device's record, durably before anybody sees it. After an error it is as
// it was, in the run directory's copy, too: what was refused must not come true by a crash.
func (l *ledger) update(change func(*state.Record)) error {
	return l.changeRecord(change, func(was, rec *state.Record) *state.Record {
		was.Serial = rec.Serial
		_ = l.records.Save(was)
		return was
	})
}

// recordChange is update for what is so already: when it can't be recorded durably, the copy
// has it, and what is recorded later builds on it.
func (l *ledger) recordChange(change func(*state.Record)) error {
	return l.changeRecord(change, func(_, rec *state.Record) *state.Record { return rec })
}

// amend changes the record of a device that isn't served: it is about to be, or can't be any more.
// What could not be written is known all the same. The turn is held.
func (l *ledger) amend(change func(*state.Record)) error {
	l.recMu.Lock()
	defer l.recMu.Unlock()
	rec := *l.record()
	change(&rec)
	err := l.records.Save(&rec)
	l.set(func() { l.rec = &rec })
	return err
}

// changeRecord gives the record that failed says when the change could not be written.
func (l *ledger) changeRecord(change func(*state.Record), failed func(was, rec *state.Record) *state.Record) error {
	l.recMu.Lock()
	defer l.recMu.Unlock()
	l.mu.Lock()
	if l.rec == nil || l.dev == nil {
		l.mu.Unlock()
		return api.Errorf(api.CodeNotFound, "device %q is gone", l.name)
	}
	was, now := *l.rec, *l.rec
	l.mu.Unlock()
	change(&now)
	rec := &now
	err := l.records.Save(rec)
	if err != nil {
		rec = failed(&was, rec)
		err = api.Errorf(api.CodeInternal, "%w", err)
	}
	l.set(func() { l.rec = rec })
	return err
}

// recordStandby brings the record in line with the device's standby.
func (l *ledger) recordStandby(dev live) {
	err := l.recordChange(func(rec *state.Record) { rec.Standby = recordStandby(dev.Restored()) })
	if err != nil && api.CodeOf(err) != api.CodeNotFound {
		l.log.Warn().Err(err).Msg("the device's standby could not be recorded")
	}
}

// restore makes the state directory tell again what it told before, nil: nothing.
func (l *ledger) restore(old *state.Record) (back *state.Record) {
	var err error
	if old == nil {
		err = l.records.Remove(l.name)
	} else {
		now := *old
		now.Serial = max(old.Serial, l.record().Serial)
		err, back = l.records.Save(&now), &now
	}
	if err != nil {
		l.log.Error().Err(err).Msg("the state directory tells of a device that was not created")
	}
	return back
}

// left has the record of a device that was left in order say so, with the standby that an error
// during the last requests has brought about, of which nothing else tells any more. No other change
// of the record may come after the successor has read it.
func (l *ledger) left(dev live) {
	l.recMu.Lock()
	defer l.recMu.Unlock()
	now := *l.record()
	now.Left, now.Standby = true, recordStandby(dev.Restored())
	if err := l.records.Save(&now); err != nil {
		l.log.Warn().Err(err).Msg("that it was left in order could not be recorded")
	}
	l.set(func() { l.rec, l.dev, l.phase, l.problem = &now, nil, Recovering, "it was left to another server" })
}

// removed ends a device that was removed, and its record; see forget. A late change of the record
// must not write it again.
func (l *ledger) removed(ending bool) error {
	l.recMu.Lock()
	defer l.recMu.Unlock()
	kept, err := l.forget(ending)
	l.set(func() {
		l.dev = nil
		if err != nil {
			l.phase, l.problem = Lost, "it was removed cleanly, but "+err.Error()
			return
		}
		l.phase, l.problem, l.rec = Lost, "", kept
		if kept == nil {
			l.phase = Empty
		}
	})
	return err
}

// forget ends the record of a device whose images were closed cleanly: for good, or, when the
// server's end is the reason and the device is persistent, until the next server.
func (l *ledger) forget(ending bool) (kept *state.Record, err error) {
	rec := l.record()
	if !ending || !rec.Spec.Persist {
		return nil, l.records.Remove(l.name)
	}
	closed := *rec
	closed.ID, closed.PID, closed.Closed, closed.Standby, closed.TargetLeases = -1, 0, true, nil, nil
	return &closed, l.records.Save(&closed)
}
