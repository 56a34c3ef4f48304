package control

import (
	"context"
	"errors"
	"slices"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/state"
	"holdfast/ublk"
)

// replaceLeft has a device that waits for its recovery take another file.
func (d *Daemon) replaceLeft(ctx context.Context, s *slot, r api.ReplaceRequest) error {
	d.mu.Lock()
	rec := *s.rec
	d.mu.Unlock()
	level := len(rec.Spec.Images) - 1
	if r.Level != nil {
		level = *r.Level
	}
	if level >= len(rec.Spec.Images) {
		return api.Errorf(api.CodeInvalid, "device %q: level %d: its top is level %d", s.name, level, len(rec.Spec.Images)-1)
	}
	ids, err := answered(statTime, r.Image, func() ([]state.ImageID, error) { return identify([]ploop.ImageRef{r.Image}) })
	if err != nil {
		return err
	}
	was := rec
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
	d.mu.Lock()
	err = d.conflict(s, &rec)
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if err := d.records.Save(&rec); err != nil {
		return api.Errorf(api.CodeInternal, "%w", err)
	}
	d.set(s, func() { s.rec = &rec })
	if err := d.tryRecovery(ctx, s, r.Force); err != nil {
		d.mu.Lock()
		was.Serial = max(rec.Serial, s.rec.Serial)
		d.mu.Unlock()
		if err := d.records.Save(&was); err != nil {
			d.log.Error().Err(err).Str("device", s.name).Msg("the record tells of a file that was not taken")
		}
		d.set(s, func() { s.rec = &was })
		return err
	}
	d.tell(s.name, api.EventReplaced, "level %d is %s now, and was %s", level, r.Image, was.Spec.Images[level])
	return nil
}

// removeLeft gives up a device that waits for its recovery: its I/O fails.
func (d *Daemon) removeLeft(ctx context.Context, s *slot, force bool) error {
	d.mu.Lock()
	disk, failing := s.rec.Disk(d.cfg.StateDir), s.failing
	d.mu.Unlock()
	if !force {
		return api.Errorf(api.CodeBusy, "device %q waits to be recovered (%s), and whoever uses it waits with it; 'holdfast remove --force %s' gives it up: its I/O fails", s.name, s.problem, s.name)
	}
	if err := d.giveUp(ctx, s, disk, failing); err != nil {
		return err
	}
	return d.removeLost(s, force)
}

// giveUp takes a device that waits for its recovery from the driver.
func (d *Daemon) giveUp(ctx context.Context, s *slot, disk state.Disk, failing failing) error {
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	var err error
	if failing != nil {
		err = failing.Stop(ctx)
	} else {
		err = d.kernel.delete(ctx, disk)
	}
	if errors.Is(err, ublk.ErrUnreleased) {
		d.set(s, func() { s.unreleased, s.problem = true, err.Error() })
		return api.Errorf(api.CodeBusy, "device %q can't be given up now: %w", s.name, err)
	}
	if err != nil && !errors.Is(err, ublk.ErrNoDevice) {
		return api.Errorf(api.CodeInternal, "device %q: %w", s.name, err)
	}
	d.set(s, func() {
		s.phase, s.failing, s.problem, s.unreleased = "", nil, "it was given up before it could be recovered", false
	})
	return nil
}

// removeOrphan deletes a device of ours that has no record.
func (d *Daemon) removeOrphan(ctx context.Context, disk state.Disk, force bool) error {
	if !force {
		return api.Errorf(api.CodeBusy, "%v has no record, and whoever uses it waits; 'holdfast remove --force ublkb%d' gives it up: its I/O fails", disk, disk.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	err := d.kernel.delete(ctx, disk)
	if errors.Is(err, ublk.ErrUnreleased) {
		return api.Errorf(api.CodeBusy, "%v can't be given up now: %w", disk, err)
	}
	if err != nil {
		return api.Errorf(api.CodeInternal, "%v: %w", disk, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.orphans, disk.ID)
	return nil
}
