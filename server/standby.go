package server

import (
	"context"
	"errors"
	"slices"
	"strings"

	"holdfast/api"
	"holdfast/standby"
	"holdfast/state"
)

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
	s.ledger.leaseMu.Lock()
	defer s.ledger.leaseMu.Unlock()
	add := func(rec *state.Record) {
		if leases := leasesOf(rec, target); !slices.Contains(*leases, consumer) {
			*leases = append(slices.Clone(*leases), consumer)
		}
	}
	if target {
		err = s.ledger.recordChange(add)
		if err != nil && api.CodeOf(err) != api.CodeNotFound {
			s.log.Warn().Err(err).Msgf("the lease of target %s could not be recorded", consumer)
			err = nil
		}
	} else {
		err = s.ledger.update(add)
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

// Detach drops a consumer's lease, by hand one that was taken by hand, and of a target the
// target's. A record that tells of it still would only give it back after a death. That a target
// has none is no error.
func (s *Server) Detach(ctx context.Context, consumer string, target bool) (*api.Device, error) {
	if err := checkConsumer(consumer); err != nil {
		return nil, err
	}
	dev, err := s.served()
	if err != nil {
		return nil, err
	}
	s.ledger.leaseMu.Lock()
	defer s.ledger.leaseMu.Unlock()
	if rec := s.record(); !target && rec != nil && !slices.Contains(rec.Leases, consumer) {
		return nil, api.Errorf(api.CodeNotFound, "device %q: %q has no lease on it that was taken by hand; those who have one: %s", s.name, consumer, api.OrNobody(rec.Leases))
	}
	shared := false
	err = s.ledger.recordChange(func(rec *state.Record) {
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
		s.log.Warn().Err(err).Msgf("that target %s has no lease any more could not be recorded", consumer)
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return s.Device(), nil
}

func checkConsumer(name string) error {
	if !api.IsConsumer(name) {
		return api.Errorf(api.CodeInvalid, "consumer %q: want 1 to 64 of a-z A-Z 0-9 . _ : -, the first a letter or digit", name)
	}
	return nil
}

// SetStandby sets STANDBY by hand, or ends it without a resume, which fails what is held.
func (s *Server) SetStandby(on bool) (*api.Device, error) {
	dev, err := s.served()
	if err != nil {
		return nil, err
	}
	err = dev.SetStandby(on)
	if errors.Is(err, standby.ErrNotSupported) {
		return nil, api.Errorf(api.CodeNotSupported, "device %q: standby is not supported: %s: %w", s.name, missingFuse(s.name, dev, s.sw.On()), err)
	}
	if err != nil {
		return nil, err
	}
	return s.Device(), nil
}

// missingFuse says which fuse is off, and how to turn it on.
func missingFuse(name string, dev live, on bool) string {
	var off []string
	if !on {
		off = append(off, "the standby check is off ('holdfast standby-check on')")
	}
	if !dev.Status().Standby.Enabled {
		off = append(off, "no consumer has a lease ('holdfast attach "+name+" --consumer NAME')")
	}
	return strings.Join(off, ", and ")
}
