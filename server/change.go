package server

import (
	"context"
	"errors"
	"slices"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/server/device"
	"holdfast/state"
)

// Replace puts another file in the place of one of the device's, while its users wait.
// Once begun it goes on when ctx ends; only the waiting ends then.
func (s *Server) Replace(ctx context.Context, r api.ReplaceRequest) (*api.Device, error) {
	images := []ploop.ImageRef{r.Image}
	if err := api.CheckImages(images); err != nil {
		return nil, err
	}
	r.Image = images[0]
	if r.Drain < 0 {
		return nil, api.Errorf(api.CodeInvalid, "drain: want 0 or more")
	}
	if r.Level != nil && *r.Level < 0 {
		return nil, api.Errorf(api.CodeInvalid, "level %d: want 0 (the base) or more", *r.Level)
	}
	err := s.turn.inBackground(ctx, "the replacement", func(ctx context.Context) error {
		s.mu.Lock()
		dev, phase := s.dev, s.phase
		s.mu.Unlock()
		switch {
		case dev != nil:
			return s.replace(ctx, dev, r)
		case phase == Recovering:
			return s.recovery.replaceFile(ctx, r)
		}
		return s.notServed()
	})
	if err != nil {
		return nil, err
	}
	return s.Device(), nil
}

// levelOf is the one whose file is to be replaced.
func levelOf(rec *state.Record, r api.ReplaceRequest) (int, error) {
	top := len(rec.Spec.Images) - 1
	switch {
	case r.Level == nil:
		return top, nil
	case *r.Level > top:
		return 0, api.Errorf(api.CodeInvalid, "device %q: level %d: its top is level %d", rec.Spec.Name, *r.Level, top)
	}
	return *r.Level, nil
}

// statTime is how long the file of a replacement has to tell which one it is.
const statTime = 10 * time.Second

// replace does the work on a device that is served. The turn is held. The new file is claimed
// before anything else, and the old one given up when nothing can be written to it any more.
func (s *Server) replace(ctx context.Context, dev live, r api.ReplaceRequest) error {
	rec := s.record()
	level, err := levelOf(rec, r)
	if err != nil {
		return err
	}
	file, ids, err := identifyNew(&rec.Spec, level, r.Image)
	if err != nil {
		return err
	}
	added := []state.ClaimedFile{file}
	if err := s.claims.add(added); err != nil {
		return err
	}
	var opened device.Opened
	err = dev.Replace(ctx, device.Replace{Level: level, Image: r.Image, Force: r.Force, Drain: time.Duration(r.Drain), Opened: func(o device.Opened) { opened = o }, Commit: func(spec api.Spec) error {
		return s.ledger.update(func(rec *state.Record) {
			rec.Spec, rec.Generation = spec, rec.Generation+1
			rec.Images = slices.Clone(rec.Images)
			rec.Images[level] = ids[0]
			if len(opened.Evidence) > 0 {
				recordOpened(rec, opened)
			}
			if level == len(rec.Images)-1 {
				rec.Standby = nil // a standby ends with it
			}
		})
	}})
	if err == nil {
		s.claims.replaced(level, file)
		return nil
	}
	s.claims.drop(added)
	e := classify(err)
	switch {
	case errors.Is(err, ploop.ErrDiverged):
		return api.Errorf(e.Code, "device %q: %w; if that is meant to be, --force takes the file as it is", s.name, err)
	case errors.Is(err, stack.ErrInFlight):
		return api.Errorf(api.CodeBusy, "device %q: %w", s.name, err)
	}
	return api.Errorf(e.Code, "device %q: %w", s.name, err)
}

// answered asks a file in storage that may hang, and leaves it alone after a time: while
// it is asked no other file can be given to the device, nor the device removed.
func answered[T any](limit time.Duration, image ploop.ImageRef, ask func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	var none T
	if !questions.begin(image.Path) {
		return none, api.Errorf(api.CodeImage, "image %q: %d earlier questions to it have no answer yet, and its storage may hang; give a file elsewhere, or abort that mount (umount -f)", image.Path, mostQuestions)
	}
	came := make(chan answer, 1)
	go func() {
		defer questions.end(image.Path)
		v, err := ask()
		came <- answer{v, err}
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case a := <-came:
		return a.value, a.err
	case <-t.C:
		return none, api.Errorf(api.CodeImage, "image %q has not answered within %v, and its storage may hang; try again, give a file elsewhere, or abort that mount (umount -f)", image.Path, limit)
	}
}
