package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"holdfast/api"
	"holdfast/internal/cond"
	"holdfast/ploop"
	"holdfast/server/device"
	"holdfast/state"
)

// Create serves a spec. If the device is lost, its images must be the same, and in-use marks on
// them are taken for our own.
//
// When ctx ends first, the creation is undone and nothing remains.
func (s *Server) Create(ctx context.Context, spec api.Spec) (*api.Device, error) {
	if err := api.CheckSpec(&spec); err != nil {
		return nil, err
	}
	if spec.Name != s.name {
		return nil, api.Errorf(api.CodeInvalid, "this server is device %q's, not %q's", s.name, spec.Name)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.creating, cancel)()
	end, err := s.turn.take(ctx)
	if err == nil {
		defer end()
		err = s.creation.create(ctx, spec)
	}
	if err != nil && s.creating.Err() != nil {
		err = api.Errorf(api.CodeStopping, "the server is stopping, device %q was not created", s.name)
	}
	if err != nil {
		if end != nil && s.record() == nil {
			s.turn.finish(ExitOver) // nothing of it remains
		}
		return nil, err
	}
	return s.Device(), nil
}

// A creation makes its server's device, when somebody says so or because it is persistent.
type creation struct {
	*Server
	mounts cond.Cond // something was mounted
}

// create does the work, with the turn held.
func (s *creation) create(ctx context.Context, spec api.Spec) error {
	s.mu.Lock()
	old, was, problem, dev := s.rec, s.phase, s.problem, s.dev
	s.mu.Unlock()
	takeOver := false
	switch {
	case dev != nil:
		return api.Errorf(api.CodeExists, "device %q exists already, as %s", s.name, dev.Path())
	case was == Recovering:
		return api.Errorf(api.CodeConflict, "device %q is being recovered: wait for it, or 'holdfast remove --force %s'", s.name, s.name)
	case old != nil && !slices.Equal(old.Spec.Images, spec.Images):
		return api.Errorf(api.CodeConflict, "device %q is lost and was served from other images (%s): create it with those, or remove it first", s.name, refs(old.Spec.Images))
	case old != nil:
		// A reader sets no mark; only what we wrote to can carry ours.
		takeOver = !old.Closed && !old.Spec.ReadOnly
	}
	ids, files, err := s.inspectFirst(ctx, &spec, old)
	if err != nil {
		return err
	}
	// Before anything is recorded or touched: without a driver nothing comes of it.
	if err := s.kernel.ready(); err != nil {
		return classify(err)
	}
	if err := s.claims.change(files); err != nil {
		return err
	}
	rec := &state.Record{Spec: spec, ID: -1, BootID: s.boot, PID: os.Getpid(), Created: time.Now().UTC(), Images: ids}
	rec.Tag = state.NewTag(s.cfg.StateDir, spec.Name, rec.Created)
	if old != nil {
		rec.Generation, rec.Leases, rec.Serial = old.Generation+1, old.Leases, old.Serial
		if takeOver { // until it has opened them itself
			rec.Size, rec.Evidence, rec.Earlier = old.Size, old.Evidence, old.Earlier
		}
	}
	s.set(func() { s.rec, s.phase, s.problem = rec, Creating, "" })
	made, err := s.openRecorded(ctx, rec, old, takeOver)
	switch {
	case errors.Is(err, device.ErrStuck):
		// The images may be written to yet, and stay marked: the record too.
		s.become(Lost, err.Error())
		return err
	case err != nil:
		s.claims.end()
		back := s.ledger.restore(old)
		s.set(func() { s.rec, s.phase, s.problem = back, was, problem }) // who tries again and again, goes on
		return err
	}
	for _, consumer := range rec.Leases {
		if err := made.Attach(consumer); err != nil {
			s.log.Error().Err(err).Msgf("the lease of %q could not be given back", consumer)
		}
	}
	s.set(func() { s.dev, s.phase, s.problem = made, Serving, "" })
	return nil
}

// inspectFirst sees what can be seen of a device's files before it is made.
func (s *creation) inspectFirst(ctx context.Context, spec *api.Spec, old *state.Record) (ids []state.ImageID, files []state.ClaimedFile, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.times.inspect)
	defer cancel()
	type seen struct {
		ids   []state.ImageID
		files []state.ClaimedFile
	}
	came := make(chan seen, 1)
	err = s.inspections.inspect(ctx, spec.Images, func() error {
		if old != nil && !old.Closed {
			if why := changed(old, s.boot, false); why != nil {
				return api.Errorf(api.CodeConflict, "device %q is lost and cannot be taken over: %w; remove it first", s.name, why)
			}
		}
		ids, err := identify(spec.Images)
		if err != nil {
			return err
		}
		files, err := claimedFiles(spec)
		if err != nil {
			return err
		}
		_ = device.Probe(spec.Images) // only whether they answer: what is wrong with them is told later
		came <- seen{ids, files}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	is := <-came
	return is.ids, is.files, nil
}

// openRecorded writes the record, opens the device, and completes the record with its number.
func (s *creation) openRecorded(ctx context.Context, rec, old *state.Record, takeOver bool) (live, error) {
	if err := s.ledger.amend(func(*state.Record) {}); err != nil {
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
	dev, err := s.kernel.open(ctx, rec.Spec, openOptions{takeOver: takeOver, tag: rec.Tag, sw: s.sw, event: s.event, known: known, opened: s.opened, added: func(id int) error {
		// Before anybody can use the device: who finds it in the driver later finds
		// its record as well.
		return s.ledger.amend(func(rec *state.Record) { rec.ID = id })
	}})
	if errors.Is(err, device.ErrStuck) {
		return nil, api.Errorf(api.CodeInternal, "%w", err)
	}
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil, api.Errorf(api.CodeInternal, "creation of device %q was given up: %w", s.name, err)
		}
		return nil, classify(err)
	}
	if takeOver {
		s.log.Info().Msg("taken over from a server that died")
	}
	return dev, nil
}

func refs(images []ploop.ImageRef) string {
	text := ""
	for i, r := range images {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%q", r.String())
	}
	return text
}
