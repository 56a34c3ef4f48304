package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/server/device"
	"holdfast/state"
)

// Create serves a spec. If the name is that of a lost device, its images must
// be the same, and in-use marks on them are taken for our own.
//
// When ctx ends first, the creation is taken back and nothing remains.
func (d *Daemon) Create(ctx context.Context, spec api.Spec) (*api.Device, error) {
	if err := api.CheckSpec(&spec); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.creating, cancel)()
	s, err := d.acquire(ctx, spec.Name)
	if err == nil {
		defer d.release(s)
		err = d.create(ctx, s, spec)
	}
	if err != nil && d.creating.Err() != nil {
		return nil, api.Errorf(api.CodeStopping, "the daemon is stopping, device %q was not created", spec.Name)
	}
	if err != nil {
		return nil, err
	}
	return d.Device(spec.Name)
}

// create does the work, with the name's token held.
func (d *Daemon) create(ctx context.Context, s *slot, spec api.Spec) error {
	old := s.rec
	takeOver := false
	if old != nil {
		if s.phase == api.StateRecovering {
			return api.Errorf(api.CodeConflict, "device %q is being recovered: wait for it, or 'holdfast remove --force %s'", spec.Name, spec.Name)
		}
		if s.dev != nil {
			return api.Errorf(api.CodeExists, "device %q exists already, as %s", spec.Name, s.dev.Path())
		}
		if !slices.Equal(old.Spec.Images, spec.Images) {
			return api.Errorf(api.CodeConflict, "device %q is lost and was served from other images (%s): create it with those, or remove it first", spec.Name, refs(old.Spec.Images))
		}
		// A reader sets no mark; only what we wrote to can carry ours.
		takeOver = !old.Closed && !old.Spec.ReadOnly
	}
	ids, err := d.lookFirst(ctx, s, &spec, old)
	if err != nil {
		return err
	}
	// Before anything is noted or touched: without a driver nothing comes of it.
	if err := d.kernel.ready(); err != nil {
		return classify(err)
	}
	rec := &state.Record{Spec: spec, ID: -1, BootID: d.boot, PID: os.Getpid(), Created: time.Now().UTC(), Images: ids}
	rec.Tag = state.NewTag(d.cfg.StateDir, spec.Name, rec.Created)
	if old != nil {
		rec.Generation, rec.Leases, rec.Serial = old.Generation+1, old.Leases, old.Serial
		if takeOver { // until it has opened them itself
			rec.Size, rec.Evidence, rec.Earlier = old.Size, old.Evidence, old.Earlier
		}
	}
	was := s.phase
	if err := d.reserve(s, rec); err != nil {
		return err
	}
	dev, err := d.openRecorded(ctx, s, rec, old, takeOver)
	d.mu.Lock()
	defer d.mu.Unlock()
	s.phase = ""
	switch {
	case errors.Is(err, device.ErrStuck):
		return err // and has a record
	case err != nil:
		s.rec, s.phase = old, was // who tries again and again, goes on
		return err
	}
	for _, consumer := range rec.Leases {
		if err := dev.Attach(consumer); err != nil {
			d.log.Error().Err(err).Str("device", s.name).Msgf("the lease of %q could not be given back", consumer)
		}
	}
	s.dev, s.problem = dev, ""
	d.driverProblem = ""
	// Outside the lock, which it takes.
	go d.devicesChanged()
	return nil
}

// lookFirst sees what can be seen of a device's files before it is made.
func (d *Daemon) lookFirst(ctx context.Context, s *slot, spec *api.Spec, old *state.Record) (ids []state.ImageID, err error) {
	ctx, cancel := context.WithTimeout(ctx, recoverTime)
	defer cancel()
	came := make(chan []state.ImageID, 1)
	err = s.look(ctx, func() error {
		if err := checkHooks(spec); err != nil {
			return err
		}
		if old != nil && !old.Closed {
			if why := changed(old, d.boot, false); why != nil {
				return api.Errorf(api.CodeConflict, "device %q is lost and cannot be taken over: %w; remove it first", spec.Name, why)
			}
		}
		ids, err := identify(spec.Images)
		if err == nil {
			_ = device.Probe(spec.Images) // only whether they answer: what is wrong with them is told later
		}
		came <- ids
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-came, nil
}

// reserve enters the record in the table, unless one of its images is already
// written to by another device, or would be written to below another's feet.
// The images' own locks would refuse it too, but couldn't name the device.
func (d *Daemon) reserve(s *slot, rec *state.Record) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopping {
		return api.Errorf(api.CodeStopping, "the daemon is stopping")
	}
	if d.upgrading.Load() {
		return api.Errorf(api.CodeBusy, "an upgrade is under way: try again")
	}
	if err := d.conflict(s, rec); err != nil {
		return err
	}
	s.rec, s.phase = rec, api.StateCreating
	return nil
}

// conflict says whose an image of rec is; mu is held.
func (d *Daemon) conflict(s *slot, rec *state.Record) error {
	for _, other := range d.slots {
		if other == s || other.rec == nil {
			continue
		}
		if i := overlap(rec, other.rec); i >= 0 {
			state := "belongs to device"
			if other.dev == nil && other.phase == "" {
				state = "belongs to the lost device"
			}
			return api.Errorf(api.CodeConflict, "image %q %s %q", rec.Spec.Images[i].Path, state, other.name)
		}
	}
	return nil
}

// overlap is the index of an image of a that b and a can't both use, or -1.
func overlap(a, b *state.Record) int {
	wa, wb := a.Writable(), b.Writable()
	for i := range a.Images {
		id := &a.Images[i]
		if wb != nil && *id == *wb || id == wa && slices.Contains(b.Images, *id) {
			return i
		}
	}
	return -1
}

// openRecorded writes the record, opens the device, and completes the record
// with its number. On failure the state directory is as before.
func (d *Daemon) openRecorded(ctx context.Context, s *slot, rec, old *state.Record, takeOver bool) (live, error) {
	undo := func() {
		var err error
		if old != nil {
			old.Serial = max(old.Serial, rec.Serial)
			err = d.records.Save(old)
		} else {
			err = d.records.Remove(rec.Spec.Name)
		}
		if err != nil {
			d.log.Error().Err(err).Str("device", s.name).Msg("the state directory tells of a device that was not created")
		}
	}
	if err := d.records.Save(rec); err != nil {
		undo()
		return nil, api.Errorf(api.CodeInternal, "%w", err)
	}
	var known device.Known
	if old != nil {
		known = knownOf(old)
		known.Fence = takeOver
		if len(rec.Spec.Images) == 1 {
			known.Size = 0 // the image says it anew
		}
	}
	dev, err := d.kernel.open(ctx, rec.Spec, openOptions{takeOver: takeOver, tag: rec.Tag, key: d.check, event: d.event(s), known: known, opened: d.opened(s, rec), added: func(id int) error {
		// Before anybody can use the device: who finds it in the driver later finds
		// its record as well.
		rec.ID = id
		return d.records.Save(rec)
	}})
	if errors.Is(err, device.ErrStuck) {
		// The images may be written to yet, and stay marked: the record too.
		d.set(s, func() { s.rec, s.problem = rec, err.Error() })
		return nil, api.Errorf(api.CodeInternal, "%w", err)
	}
	if err != nil {
		undo()
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil, api.Errorf(api.CodeInternal, "creation of device %q was given up: %w", s.name, err)
		}
		e := classify(err)
		if e.Code == api.CodeDriver {
			d.set(s, func() { d.driverProblem = e.Message })
		}
		return nil, e
	}
	if takeOver {
		d.log.Info().Str("device", s.name).Msg("taken over from a daemon that died")
	}
	return dev, nil
}

func refs(images []ploop.ImageRef) string {
	s := ""
	for i, r := range images {
		if i > 0 {
			s += ", "
		}
		s += fmt.Sprintf("%q", r.String())
	}
	return s
}
