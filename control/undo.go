package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"holdfast/ploop"
	"holdfast/state"
)

// What an upgrade looks at before it leaves any device, and what it does with those that it has
// left when nobody else serves them. The tokens of their names are held.

// examineAll sees of all devices that are served whether another server could take them over.
func (d *Daemon) examineAll(slots []*slot) error {
	ctx, cancel := context.WithTimeout(context.Background(), recoverTime)
	defer cancel()
	errs := make([]error, len(slots))
	var wg sync.WaitGroup
	for i, s := range slots {
		d.mu.Lock()
		served := s.dev != nil
		var rec state.Record
		if served {
			rec = *s.rec
		}
		d.mu.Unlock()
		if !served {
			continue
		}
		wg.Go(func() {
			err := s.look(ctx, func() error {
				if err := changed(&rec, d.boot, true); err != nil {
					return err
				}
				return d.kernel.examine(rec.Spec, knownOf(&rec))
			})
			if err != nil {
				errs[i] = fmt.Errorf("device %q: %w", s.name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// takeBack recovers what was left, at most for as long as an attempt lasts, and goes on with the
// rest in the background. It says how many are served again, and what the others wait for.
func (d *Daemon) takeBack(left []*slot) string {
	if len(left) == 0 {
		return ""
	}
	ctx, cancel := context.WithTimeout(d.alive, recoverTime)
	defer cancel()
	var mu sync.Mutex
	var waiting []string
	var wg sync.WaitGroup
	for _, s := range left {
		wg.Go(func() {
			err := d.recoverWithin(ctx, s)
			if err == nil {
				return
			}
			mu.Lock()
			waiting = append(waiting, err.Error())
			mu.Unlock()
			d.watching.Go(func() { d.recover(d.alive, s) })
		})
	}
	wg.Wait()
	if len(waiting) == 0 {
		return fmt.Sprintf("; it has taken back all devices that were left (%d)", len(left))
	}
	return fmt.Sprintf("; it has taken back %d of the %d devices that were left, and tries the others again and again: %s",
		len(left)-len(waiting), len(left), strings.Join(waiting, "; "))
}

// recoverWithin tries to recover a device, and again while its lock is another's.
func (d *Daemon) recoverWithin(ctx context.Context, s *slot) error {
	for {
		err := d.tryRecovery(ctx, s, false)
		if err == nil || !errors.Is(err, ploop.ErrLocked) {
			return err
		}
		select {
		case <-time.After(lockWait):
		case <-ctx.Done():
			return err
		}
	}
}

// leftInOrder notes that nothing of a device was under way when it was left: whoever is next
// needs no fence.
func (d *Daemon) leftInOrder(s *slot, dev live) {
	d.mu.Lock()
	rec := *s.rec
	d.mu.Unlock()
	rec.Left, rec.Standby = true, recordStandby(dev.Restored())
	if err := d.records.Save(&rec); err != nil {
		d.log.Warn().Err(err).Str("device", s.name).Msg("that it was left in order could not be noted")
	}
	d.set(s, func() { s.rec = &rec })
}

// readAgain takes over what another daemon has noted of devices since: it may have served them.
func (d *Daemon) readAgain(left []*slot) {
	recs, _, err := d.records.Load()
	if err != nil {
		d.log.Error().Err(err).Msg("the records can't be read again")
	}
	for _, s := range left {
		d.set(s, func() {
			was := *s.rec
			was.Left = false
			for _, rec := range recs {
				if rec.Spec.Name == s.name && rec.Serial >= was.Serial {
					was = *rec
				}
			}
			s.rec = &was
		})
	}
}
