package server

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"

	"holdfast/api"
	"holdfast/standby"
	"holdfast/state"
)

var consumerForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._:-]{0,63}$`)

// Attach takes a lease on the device for a consumer, durably before it is acted on; of a target,
// which is seen anew anyway, as far as that is possible. To do so twice is no error.
func (s *Server) Attach(ctx context.Context, consumer string, target bool) (*api.Device, error) {
	if err := checkConsumer(consumer); err != nil {
		return nil, err
	}
	dev, err := s.served()
	if err != nil {
		return nil, err
	}
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	add := func(rec *state.Record) {
		if leases := leasesOf(rec, target); !slices.Contains(*leases, consumer) {
			*leases = append(slices.Clone(*leases), consumer)
		}
	}
	if target {
		err = s.noteChange(add)
		if err != nil && api.CodeOf(err) != api.CodeNotFound {
			s.log.Warn().Err(err).Msgf("the lease of target %s could not be noted", consumer)
			err = nil
		}
	} else {
		err = s.update(add)
	}
	if err != nil {
		return nil, err
	}
	if err := dev.Attach(consumer); err != nil && !errors.Is(err, standby.ErrAttached) {
		return nil, api.Errorf(api.CodeInternal, "device %q: %w", s.name, err)
	}
	return s.Device(), nil
}

// leasesOf are a record's of one kind.
func leasesOf(rec *state.Record, target bool) *[]string {
	if target {
		return &rec.TargetLeases
	}
	return &rec.Leases
}

// Detach drops a consumer's lease, by hand one that was taken by hand, and of a target the target's.
// A record that tells of it still would only give it back after a death. That a target has none is
// no error.
func (s *Server) Detach(ctx context.Context, consumer string, target bool) (*api.Device, error) {
	if err := checkConsumer(consumer); err != nil {
		return nil, err
	}
	dev, err := s.served()
	if err != nil {
		return nil, err
	}
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	if rec := s.record(); !target && rec != nil && !slices.Contains(rec.Leases, consumer) {
		return nil, api.Errorf(api.CodeNotFound, "device %q: %q has no lease on it that was taken by hand; those who have one: %s", s.name, consumer, api.OrNobody(rec.Leases))
	}
	shared := false
	err = s.noteChange(func(rec *state.Record) {
		leases := leasesOf(rec, target)
		*leases = slices.DeleteFunc(slices.Clone(*leases), func(c string) bool { return c == consumer })
		shared = slices.Contains(*leasesOf(rec, !target), consumer)
	})
	if !shared {
		if err := dev.Detach(consumer); err != nil && !errors.Is(err, standby.ErrNotAttached) {
			return nil, err
		}
	}
	if err != nil && target && api.CodeOf(err) != api.CodeNotFound {
		s.log.Warn().Err(err).Msgf("that target %s has no lease any more could not be noted", consumer)
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return s.Device(), nil
}

func checkConsumer(name string) error {
	if !consumerForm.MatchString(name) {
		return api.Errorf(api.CodeInvalid, "consumer %q: want 1 to 64 of a-z A-Z 0-9 . _ : -, the first a letter or digit", name)
	}
	return nil
}

// SetStandby sets STANDBY by hand, or ends it without a recovery, which fails what is held.
func (s *Server) SetStandby(on bool) (*api.Device, error) {
	dev, err := s.served()
	if err != nil {
		return nil, err
	}
	err = dev.SetStandby(on)
	if errors.Is(err, standby.ErrNotSupported) {
		return nil, api.Errorf(api.CodeNotSupported, "device %q: standby is not supported: %s: %w", s.name, s.missingFuse(dev), err)
	}
	if err != nil {
		return nil, err
	}
	return s.Device(), nil
}

// missingFuse says which fuse is off, and how to turn it on.
func (s *Server) missingFuse(dev live) string {
	var off []string
	if !s.sw.On() {
		off = append(off, "the standby check is off ('holdfast standby-check on')")
	}
	if !dev.Status().Standby.Enabled {
		off = append(off, "no consumer has a lease ('holdfast attach "+s.name+" --consumer NAME')")
	}
	return strings.Join(off, ", and ")
}

// served is the device, to do something quick to it beside whatever operation is under way.
func (s *Server) served() (live, error) {
	s.mu.Lock()
	dev := s.dev
	s.mu.Unlock()
	if dev == nil {
		return nil, s.notServed()
	}
	return dev, nil
}

// notServed is the refusal to do something to a device that is not served now.
func (s *Server) notServed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec == nil {
		return api.Errorf(api.CodeNotFound, "there is no device %q", s.name)
	}
	return api.Errorf(api.CodeConflict, "device %q is %s, and not served now; 'holdfast why %s' tells more", s.name, s.state(), s.name)
}

// update changes the device's record, durably before anybody sees it. After an error it is as
// it was, in the run directory's copy, too: what was refused must not come true by a crash.
func (s *Server) update(change func(*state.Record)) error {
	return s.changeRecord(change, func(was, rec *state.Record) *state.Record {
		was.Serial = rec.Serial
		_ = s.records.Save(was)
		return was
	})
}

// noteChange is update for what is so already: when it can't be noted durably, the copy
// has it, and what is noted later builds on it.
func (s *Server) noteChange(change func(*state.Record)) error {
	return s.changeRecord(change, func(_, rec *state.Record) *state.Record { return rec })
}

// amend changes the record of a device that isn't served: it is about to be, or can't be any more.
// What could not be written is known all the same. The turn is held.
func (s *Server) amend(change func(*state.Record)) error {
	s.recMu.Lock()
	defer s.recMu.Unlock()
	rec := *s.record()
	change(&rec)
	err := s.records.Save(&rec)
	s.set(func() { s.rec = &rec })
	return err
}

// changeRecord gives the record that failed says when the change could not be written.
func (s *Server) changeRecord(change func(*state.Record), failed func(was, rec *state.Record) *state.Record) error {
	s.recMu.Lock()
	defer s.recMu.Unlock()
	s.mu.Lock()
	if s.rec == nil || s.dev == nil {
		s.mu.Unlock()
		return api.Errorf(api.CodeNotFound, "device %q is gone", s.name)
	}
	was, now := *s.rec, *s.rec
	s.mu.Unlock()
	change(&now)
	rec := &now
	err := s.records.Save(rec)
	if err != nil {
		rec = failed(&was, rec)
		err = api.Errorf(api.CodeInternal, "%w", err)
	}
	s.set(func() { s.rec = rec })
	return err
}

// noteStandby brings the record in line with the device's standby.
func (s *Server) noteStandby(dev live) {
	err := s.noteChange(func(rec *state.Record) { rec.Standby = recordStandby(dev.Restored()) })
	if err != nil && api.CodeOf(err) != api.CodeNotFound {
		s.log.Warn().Err(err).Msg("the device's standby could not be noted")
	}
}
