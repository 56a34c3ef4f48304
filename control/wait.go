package control

import (
	"context"
	"net/http"
	"slices"
	"time"

	"holdfast/api"
)

// waitPeriod is how often a wait looks by itself: not every change of a live device's state
// is an event.
const waitPeriod = time.Second

// Wait returns when the device is in one of the states, with what it is then: for StateRemoved
// its name and that. A device that is gone and not waited for as removed is CodeNotFound; a
// daemon that ends is CodeStopping.
func (d *Daemon) Wait(ctx context.Context, name string, states []string) (*api.Device, error) {
	if err := api.CheckStates(states); err != nil {
		return nil, err
	}
	tick := time.NewTicker(waitPeriod)
	defer tick.Stop()
	ending := false
	for {
		changed := d.changed.next()
		state := d.stateOf(name)
		switch {
		case slices.Contains(states, state) && state == api.StateRemoved:
			return &api.Device{Status: api.Status{Name: name, ID: -1, State: api.StateRemoved}}, nil
		case slices.Contains(states, state):
			dev, err := d.BriefDevice(name)
			if err == nil {
				dev.State = state // what it was a moment ago was waited for
			}
			return dev, err
		case state == api.StateRemoved:
			return nil, api.Errorf(api.CodeNotFound, "there is no device %q", name)
		case ending:
			return nil, api.Errorf(api.CodeStopping, "the daemon has ended while device %q was %s", name, state)
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-d.closing:
			ending = true
		case <-ctx.Done():
			return nil, api.Errorf(api.CodeInternal, "device %q is %s: %w", name, state, ctx.Err())
		}
	}
}

// stateOf is a device's state, StateRemoved if there is none of that name.
func (d *Daemon) stateOf(name string) string {
	d.mu.Lock()
	s := d.slots[name]
	if s == nil || s.rec == nil {
		d.mu.Unlock()
		return api.StateRemoved
	}
	dev, phase, state := s.dev, s.phase, s.waitState()
	d.mu.Unlock()
	switch {
	case phase == api.StateRecovering:
		return state
	case phase != "":
		return phase
	case dev == nil:
		return api.StateLost
	}
	return dev.Status().State
}

// serveWait answers when the state is there.
func (d *Daemon) serveWait(w http.ResponseWriter, r *http.Request, name string) {
	answer(w)(d.Wait(r.Context(), name, r.URL.Query()["state"]))
}
