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

// replaceFile has a device that waits for its recovery take another file. The turn is held.
func (r *recovery) replaceFile(ctx context.Context, want api.ReplaceRequest) error {
	was := r.record()
	rec := *was
	level, err := levelOf(was, want)
	if err != nil {
		return err
	}
	file, ids, err := identifyNew(&rec.Spec, level, want.Image)
	if err != nil {
		return err
	}
	rec.Spec.Images = slices.Clone(rec.Spec.Images)
	rec.Spec.Images[level] = want.Image
	replaced(&rec, level, ids[0], want.Image)
	rec.Generation++
	if level == len(rec.Images)-1 {
		rec.Standby = nil
	}
	if err := rec.Spec.Validate(); err != nil {
		return api.Errorf(api.CodeInvalid, "%w", err)
	}
	// A recovery claims the device's files itself, the new one among them. The old ones stay
	// claimed until it is known whether they are the device's.
	before := slices.Clone(r.claims.files)
	both := append(slices.Clone(before), file)
	if err := r.claims.add(both); err != nil {
		return err
	}
	defer r.claims.drop(both)
	if err := r.ledger.amend(func(now *state.Record) { *now = rec }); err != nil {
		_ = r.ledger.amend(func(now *state.Record) { rec := *was; rec.Serial = now.Serial; *now = rec })
		return api.Errorf(api.CodeInternal, "%w", err)
	}
	if err := r.try(ctx, want.Force); err != nil {
		if err := r.ledger.amend(func(rec *state.Record) {
			serial := rec.Serial
			*rec = *was
			rec.Serial = serial
		}); err != nil {
			r.log.Error().Err(err).Msg("the record tells of a file that was not taken")
		}
		_ = r.claims.change(before) // still ours
		return err
	}
	r.emit(api.EventReplaced, "level %d is %s now, and was %s", level, want.Image, was.Spec.Images[level])
	return nil
}

// identifyNew asks a file that is to be taken which one it is, without waiting for long.
func identifyNew(spec *api.Spec, level int, ref ploop.ImageRef) (state.ClaimedFile, []state.ImageID, error) {
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

// removeWaiting gives up a device that waits for its recovery: its I/O fails. The turn is held.
func (r *recovery) removeWaiting(ctx context.Context, force bool) error {
	r.mu.Lock()
	disk, failing, problem := r.disk(r.rec), r.failing, r.problem
	r.mu.Unlock()
	if !force {
		return api.Errorf(api.CodeBusy, "device %q waits to be recovered (%s), and whoever uses it waits with it; 'holdfast remove --force %s' gives it up: its I/O fails", r.name, problem, r.name)
	}
	if err := r.giveUp(ctx, disk, failing); err != nil {
		return err
	}
	return r.removal.removeLost(force)
}

// giveUp takes a device that waits for its recovery from the driver.
func (r *recovery) giveUp(ctx context.Context, disk state.Disk, failing failing) error {
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	var err error
	if failing != nil {
		err = failing.Stop(ctx)
	} else {
		err = r.kernel.delete(ctx, disk)
	}
	if errors.Is(err, ublk.ErrUnreleased) {
		r.set(func() { r.unreleased, r.problem = true, err.Error() })
		return api.Errorf(api.CodeBusy, "device %q can't be given up now: %w", r.name, err)
	}
	if err != nil && !errors.Is(err, ublk.ErrNoDevice) {
		return api.Errorf(api.CodeInternal, "device %q: %w", r.name, err)
	}
	r.set(func() {
		r.phase, r.failing, r.problem, r.unreleased = Lost, nil, "it was given up before it could be recovered", false
	})
	return nil
}
