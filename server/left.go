package server

import (
	"context"
	"errors"
	"slices"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/state"
	"holdfast/ublk"
)

// replaceLeft has a device that waits for its recovery take another file. The turn is held.
func (s *Server) replaceLeft(ctx context.Context, r api.ReplaceRequest) error {
	was := s.record()
	rec := *was
	level, err := levelOf(was, r)
	if err != nil {
		return err
	}
	file, ids, err := s.identifyNew(&rec.Spec, level, r.Image)
	if err != nil {
		return err
	}
	rec.Spec.Images = slices.Clone(rec.Spec.Images)
	rec.Spec.Images[level] = r.Image
	replaced(&rec, level, ids[0], r.Image)
	rec.Generation++
	if level == len(rec.Images)-1 {
		rec.Standby = nil
	}
	if err := rec.Spec.Validate(); err != nil {
		return api.Errorf(api.CodeInvalid, "%w", err)
	}
	// A recovery claims the device's files itself, the new one among them. The old ones stay
	// claimed until it is known whether they are the device's.
	before := slices.Clone(s.claims.files)
	both := append(slices.Clone(before), file)
	if err := s.claims.add(both); err != nil {
		return err
	}
	defer s.claims.drop(both)
	if err := s.amend(func(r *state.Record) { *r = rec }); err != nil {
		_ = s.amend(func(r *state.Record) { rec := *was; rec.Serial = r.Serial; *r = rec })
		return api.Errorf(api.CodeInternal, "%w", err)
	}
	if err := s.tryRecovery(ctx, r.Force); err != nil {
		if err := s.amend(func(rec *state.Record) {
			serial := rec.Serial
			*rec = *was
			rec.Serial = serial
		}); err != nil {
			s.log.Error().Err(err).Msg("the record tells of a file that was not taken")
		}
		_ = s.claims.change(before) // still ours
		return err
	}
	s.tell(api.EventReplaced, "level %d is %s now, and was %s", level, r.Image, was.Spec.Images[level])
	return nil
}

// identifyNew asks a file that is to be taken which one it is, without waiting for long.
func (s *Server) identifyNew(spec *api.Spec, level int, ref ploop.ImageRef) (state.ClaimedFile, []state.ImageID, error) {
	type answer struct {
		file state.ClaimedFile
		ids  []state.ImageID
	}
	a, err := answered(statTime, ref, func() (a answer, err error) {
		if a.ids, err = identify([]ploop.ImageRef{ref}); err == nil {
			a.file, err = claimedFile(spec, level, ref)
		}
		return a, err
	})
	return a.file, a.ids, err
}

// removeLeft gives up a device that waits for its recovery: its I/O fails. The turn is held.
func (s *Server) removeLeft(ctx context.Context, force bool) error {
	s.mu.Lock()
	disk, failing, problem := s.disk(s.rec), s.failing, s.problem
	s.mu.Unlock()
	if !force {
		return api.Errorf(api.CodeBusy, "device %q waits to be recovered (%s), and whoever uses it waits with it; 'holdfast remove --force %s' gives it up: its I/O fails", s.name, problem, s.name)
	}
	if err := s.giveUp(ctx, disk, failing); err != nil {
		return err
	}
	return s.removeLost(force)
}

// giveUp takes a device that waits for its recovery from the driver.
func (s *Server) giveUp(ctx context.Context, disk state.Disk, failing failing) error {
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	var err error
	if failing != nil {
		err = failing.Stop(ctx)
	} else {
		err = s.kernel.delete(ctx, disk)
	}
	if errors.Is(err, ublk.ErrUnreleased) {
		s.set(func() { s.unreleased, s.problem = true, err.Error() })
		return api.Errorf(api.CodeBusy, "device %q can't be given up now: %w", s.name, err)
	}
	if err != nil && !errors.Is(err, ublk.ErrNoDevice) {
		return api.Errorf(api.CodeInternal, "device %q: %w", s.name, err)
	}
	s.set(func() {
		s.phase, s.failing, s.problem, s.unreleased = Lost, nil, "it was given up before it could be recovered", false
	})
	return nil
}
