package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/server/device"
	"holdfast/standby"
)

// fakeDevice is a device that is served.
type fakeDevice struct {
	k      *fakeKernel
	id     int
	spec   api.Spec
	event  func(api.Event)
	forced bool
	// machine is the real one: what the server sees of standby is not made up.
	machine  *standby.Device
	replaced []device.Replace
	// unanswered is what its queues owe.
	unanswered time.Duration
	oldest     *api.OldestRequest // with it the device is hung
	displaced  []api.Displaced
	leaving    func() // what happens meanwhile
}

func (d *fakeDevice) ID() int      { return d.id }
func (d *fakeDevice) Path() string { return fmt.Sprintf("/dev/ublkb%d", d.id) }

func (d *fakeDevice) Status() api.Status {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	d.k.asked++
	st := api.Status{Name: d.spec.Name, ID: d.id, Path: d.Path(), Size: 1 << 30, State: api.StateLive, ReadOnly: d.spec.ReadOnly}
	m := d.machine.Status()
	st.Standby = api.StandbyStatus{Value: m.Value(), Enabled: m.Enabled, Flag: m.Flag, Consumers: m.Consumers, Cause: m.Cause, ByHand: m.ByHand, Tags: 128, Resume: api.ResumeManual}
	if m.Flag && m.Supported {
		st.State, st.Since, st.Standby.Since = api.StateStandby, m.Since, &m.Since
	}
	for i, r := range d.spec.Images {
		st.Images = append(st.Images, ploop.ImageStatus{Path: r.Path, Level: i})
	}
	if d.oldest != nil {
		st.State, st.Since, st.Oldest, st.Counters.InFlight = api.StateHung, d.oldest.Since, d.oldest, 1
	}
	st.Displaced = d.displaced
	return st
}

func (d *fakeDevice) Unanswered() time.Duration {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	return d.unanswered
}

func (d *fakeDevice) Restored() *standby.Restored {
	m := d.machine.Status()
	if !m.Flag {
		return nil
	}
	return &standby.Restored{ByHand: m.ByHand, Errno: m.Errno, Cause: m.Cause, Since: m.Since}
}

// Leave leaves it to the next server.
func (d *fakeDevice) Leave(context.Context, time.Duration) error {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	if err := d.k.closeErr[d.spec.Name]; err != nil {
		return err
	}
	if d.leaving != nil {
		d.leaving()
	}
	delete(d.k.live, d.spec.Name)
	d.k.waiting[d.id] = d.spec.Name
	return nil
}

func (d *fakeDevice) Attach(consumer string) error { return d.machine.Attach(consumer) }
func (d *fakeDevice) Detach(consumer string) error { return d.machine.Detach(consumer) }

func (d *fakeDevice) SetStandby(on bool) error {
	if on {
		return d.machine.Set()
	}
	d.machine.Clear("by hand")
	return nil
}

// Replace does as a real one does: the record is changed before the file is.
func (d *fakeDevice) Replace(_ context.Context, r device.Replace) error {
	d.k.mu.Lock()
	err, hold := d.k.replaceErr, d.k.replaceHold[d.spec.Name]
	d.k.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if err != nil {
		return err
	}
	spec := d.spec
	if r.Level < 0 {
		r.Level = len(spec.Images) - 1
	}
	spec.Images = slices.Clone(spec.Images)
	spec.Images[r.Level] = r.Image
	if err := r.Commit(spec); err != nil {
		return err
	}
	d.k.set(func() { d.spec, d.replaced = spec, append(d.replaced, r) })
	d.machine.Resume()
	return nil
}

func (d *fakeDevice) Close(_ context.Context, force bool) error {
	name := d.spec.Name
	d.k.mu.Lock()
	if hold := d.k.closeHold[name]; hold != nil {
		d.k.mu.Unlock()
		<-hold
		d.k.mu.Lock()
	}
	defer d.k.mu.Unlock()
	if err := d.k.closeErr[name]; err != nil {
		if !errors.Is(err, device.ErrBusy) && !errors.Is(err, context.DeadlineExceeded) {
			delete(d.k.live, name)
		}
		return err
	}
	if len(d.k.inUse[name]) > 0 && !force {
		return device.ErrBusy
	}
	if d.k.live[name] != d {
		d.k.t.Errorf("%s closed twice", name)
	}
	delete(d.k.live, name)
	d.forced = force
	return nil
}
