package control

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/server/device"
	"holdfast/standby"
	"holdfast/state"
)

// handHolder is who holds the key when it was turned on by hand.
const handHolder = "hand"

var consumerForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._:-]{0,63}$`)

// Key is the state of the standby check.
func (d *Daemon) Key() api.KeyInfo {
	info := api.KeyInfo{On: d.check.On(), Holders: d.key.Holders(), Targets: d.targets.info(), Inconsistencies: map[string]uint64{}}
	for i, n := range d.key.Inconsistencies() {
		info.Inconsistencies[string(i)] = n
	}
	return info
}

// SetKey turns the standby check on by hand, or takes that back. It stays on while an
// integration with a target holds it: CodeBusy.
func (d *Daemon) SetKey(on bool) (api.KeyInfo, error) {
	d.handMu.Lock()
	defer d.handMu.Unlock()
	held := slices.Contains(d.key.Holders(), handHolder)
	switch {
	case on && !held:
		if err := d.enableKey(handHolder); err != nil {
			return d.Key(), api.Errorf(api.CodeInternal, "%w", err)
		}
		d.tell("", api.EventKeyOn, "the standby check is on, by hand")
	case on: // to ask again helps when the first time failed
		if err := d.key.Apply(); err != nil {
			return d.Key(), api.Errorf(api.CodeInternal, "%w", err)
		}
	case held:
		if err := d.disableKey(handHolder); err != nil {
			return d.Key(), api.Errorf(api.CodeInternal, "%w", err)
		}
		d.tell("", api.EventKeyOff, "the standby check is no longer on by hand")
	}
	if others := d.key.Holders(); !on && len(others) > 0 {
		return d.Key(), api.Errorf(api.CodeBusy, "the standby check stays on: held by %s; 'holdfast daemon --targets none' leaves targets alone", strings.Join(others, ", "))
	}
	return d.Key(), nil
}

// Attach takes a lease on a device for a consumer, durably. To do so twice is no error.
func (d *Daemon) Attach(ctx context.Context, name, consumer string) (*api.Device, error) {
	if err := d.checkConsumer(consumer); err != nil {
		return nil, err
	}
	err := d.withDevice(name, func(s *slot, dev live) error {
		err := d.update(s, func(rec *state.Record) {
			if !slices.Contains(rec.Leases, consumer) {
				rec.Leases = append(slices.Clone(rec.Leases), consumer)
			}
		})
		if err != nil {
			return err
		}
		if err := dev.Attach(consumer); err != nil && !errors.Is(err, standby.ErrAttached) {
			return api.Errorf(api.CodeInternal, "device %q: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return d.Device(name)
}

// Detach drops a consumer's lease.
func (d *Daemon) Detach(ctx context.Context, name, consumer string) (*api.Device, error) {
	if err := d.checkConsumer(consumer); err != nil {
		return nil, err
	}
	err := d.withDevice(name, func(s *slot, dev live) error {
		err := d.dropLease(s, dev, consumer)
		if errors.Is(err, standby.ErrNotAttached) {
			return api.Errorf(api.CodeNotFound, "device %q: %q has no lease on it; those who have: %s", name, consumer, api.OrNobody(dev.Status().Standby.Consumers))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return d.Device(name)
}

// dropLease drops a lease that was taken by hand. A record that tells of it still would only
// give it back after a crash.
func (d *Daemon) dropLease(s *slot, dev live, consumer string) error {
	if err := dev.Detach(consumer); err != nil {
		return err
	}
	return d.noteChange(s, func(rec *state.Record) {
		rec.Leases = slices.DeleteFunc(slices.Clone(rec.Leases), func(c string) bool { return c == consumer })
	})
}

func (d *Daemon) checkConsumer(name string) error {
	if !consumerForm.MatchString(name) {
		return api.Errorf(api.CodeInvalid, "consumer %q: want 1 to 64 of a-z A-Z 0-9 . _ : -, the first a letter or digit", name)
	}
	if d.targets.watches(name) {
		return api.Errorf(api.CodeInvalid, "consumer %q: the daemon itself sees what that target does", name)
	}
	return nil
}

// SetStandby sets STANDBY by hand, or ends it without a recovery, which fails what is held.
func (d *Daemon) SetStandby(name string, on bool) (*api.Device, error) {
	err := d.withDevice(name, func(_ *slot, dev live) error {
		err := dev.SetStandby(on)
		if errors.Is(err, standby.ErrNotSupported) {
			return api.Errorf(api.CodeNotSupported, "device %q: standby is not supported: %s: %w", name, d.missingFuse(dev), err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return d.Device(name)
}

// missingFuse says which fuse is off, and how to turn it on.
func (d *Daemon) missingFuse(dev live) string {
	var off []string
	if !d.check.On() {
		off = append(off, "the standby check is off ('holdfast standby-check on')")
	}
	st := dev.Status()
	if !st.Standby.Enabled {
		off = append(off, "no consumer has a lease ('holdfast attach "+st.Name+" --consumer NAME')")
	}
	return strings.Join(off, ", and ")
}

// withDevice runs something quick on a live device, beside whatever operation is under way.
func (d *Daemon) withDevice(name string, do func(s *slot, dev live) error) error {
	d.mu.Lock()
	s := d.slots[name]
	var dev live
	known := s != nil && s.rec != nil
	if known {
		dev = s.dev
	}
	d.mu.Unlock()
	switch {
	case !known:
		return api.Errorf(api.CodeNotFound, "there is no device %q", name)
	case dev == nil:
		return d.notServed(s)
	}
	return do(s, dev)
}

// notServed is the refusal to do something to a device that has no server now.
func (d *Daemon) notServed(s *slot) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	state := s.phase
	switch {
	case s.rec == nil:
		return api.Errorf(api.CodeNotFound, "there is no device %q", s.name)
	case state == "":
		state = api.StateLost
	}
	return api.Errorf(api.CodeConflict, "device %q is %s, and not served now; 'holdfast why %s' tells more", s.name, state, s.name)
}

// update changes a device's record, durably before anybody sees it. After an error it is as
// it was, in the run directory's copy, too: what was refused must not come true by a crash.
func (d *Daemon) update(s *slot, change func(*state.Record)) error {
	return d.changeRecord(s, change, func(was, rec *state.Record) *state.Record {
		was.Serial = rec.Serial
		_ = d.records.Save(was)
		return was
	})
}

// noteChange is update for what is so already: when it can't be noted durably, the copy
// has it, and what is noted later builds on it.
func (d *Daemon) noteChange(s *slot, change func(*state.Record)) error {
	return d.changeRecord(s, change, func(_, rec *state.Record) *state.Record { return rec })
}

// changeRecord gives the record that failed says when the change could not be written.
func (d *Daemon) changeRecord(s *slot, change func(*state.Record), failed func(was, rec *state.Record) *state.Record) error {
	s.recMu.Lock()
	defer s.recMu.Unlock()
	d.mu.Lock()
	if s.rec == nil || s.dev == nil {
		d.mu.Unlock()
		return api.Errorf(api.CodeNotFound, "device %q is gone", s.name)
	}
	was, now := *s.rec, *s.rec
	d.mu.Unlock()
	change(&now)
	rec := &now
	err := d.records.Save(rec)
	if err != nil {
		rec = failed(&was, rec)
		err = api.Errorf(api.CodeInternal, "%w", err)
	}
	d.set(s, func() { s.rec = rec })
	return err
}

// Replace puts another file in the place of one of a device's, while its users wait.
// Once begun it goes on when ctx ends; only the waiting ends then.
func (d *Daemon) Replace(ctx context.Context, name string, r api.ReplaceRequest) (*api.Device, error) {
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
	err := d.inBackground(ctx, name, "the replacement", func(ctx context.Context, s *slot) error {
		switch {
		case s.dev == nil && s.phase == api.StateRecovering:
			return d.replaceLeft(ctx, s, r)
		case s.dev == nil:
			return d.notServed(s)
		}
		return d.replace(ctx, s, r)
	})
	if err != nil {
		return nil, err
	}
	return d.Device(name)
}

// statTime is how long the file of a replacement has to tell which one it is.
const statTime = 10 * time.Second

// answered asks a file in storage that may hang, and leaves it alone after a time: while
// it is asked no other file can be given to the device, nor the device removed.
func answered(limit time.Duration, image ploop.ImageRef, ask func() ([]state.ImageID, error)) ([]state.ImageID, error) {
	type answer struct {
		ids []state.ImageID
		err error
	}
	if !questions.begin(image.Path) {
		return nil, api.Errorf(api.CodeImage, "image %q: %d earlier questions to it have no answer yet: its storage hangs; give a file elsewhere, or abort that mount (umount -f)", image.Path, mostQuestions)
	}
	came := make(chan answer, 1)
	go func() {
		defer questions.end(image.Path)
		ids, err := ask()
		came <- answer{ids, err}
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case a := <-came:
		return a.ids, a.err
	case <-t.C:
		return nil, api.Errorf(api.CodeImage, "image %q does not answer within %v: its storage hangs; give a file elsewhere, or abort that mount (umount -f)", image.Path, limit)
	}
}

// replace does the work, with the name's token held.
func (d *Daemon) replace(ctx context.Context, s *slot, r api.ReplaceRequest) error {
	d.mu.Lock()
	probe := *s.rec // as it would be
	d.mu.Unlock()
	level := len(probe.Spec.Images) - 1
	if r.Level != nil {
		level = *r.Level
	}
	ids, err := answered(statTime, r.Image, func() ([]state.ImageID, error) { return identify([]ploop.ImageRef{r.Image}) })
	if err != nil {
		return err
	}
	if level < len(probe.Images) {
		probe.Spec.Images, probe.Images = slices.Clone(probe.Spec.Images), slices.Clone(probe.Images)
		probe.Spec.Images[level], probe.Images[level] = r.Image, ids[0]
		d.mu.Lock()
		err := d.conflict(s, &probe)
		d.mu.Unlock()
		if err != nil {
			return err
		}
	}
	var opened device.Opened
	err = s.dev.Replace(ctx, device.Replace{Level: level, Image: r.Image, Force: r.Force, Drain: time.Duration(r.Drain), Opened: func(o device.Opened) { opened = o }, Commit: func(spec api.Spec) error {
		return d.update(s, func(rec *state.Record) {
			rec.Spec, rec.Generation = spec, rec.Generation+1
			rec.Images = slices.Clone(rec.Images)
			rec.Images[level] = ids[0]
			if len(opened.Evidence) > 0 {
				noteOpened(rec, opened)
			}
			if level == len(rec.Images)-1 {
				rec.Standby = nil // a standby ends with it
			}
		})
	}})
	if err == nil {
		return nil
	}
	e := classify(err)
	switch {
	case errors.Is(err, ploop.ErrDiverged):
		return api.Errorf(e.Code, "device %q: %w; if that is meant to be, --force takes the file as it is", s.name, err)
	case errors.Is(err, stack.ErrInFlight):
		return api.Errorf(api.CodeBusy, "device %q: %w", s.name, err)
	}
	return api.Errorf(e.Code, "device %q: %w", s.name, err)
}

// note tells of an inconsistency of the key. The holders' lock is held: nothing here blocks.
func (d *Daemon) note(i standby.Inconsistency) {
	d.log.Warn().Str("event", api.EventInconsistency).Str("kind", string(i)).Msg(i.String())
	d.addEvent(newEvent("", api.EventInconsistency, string(i)+": "+i.String()))
}
