package manager

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
// manager that ends is CodeStopping.
func (m *Manager) Wait(ctx context.Context, name string, states []string) (*api.Device, error) {
	if err := api.CheckStates(states); err != nil {
		return nil, err
	}
	tick := time.NewTicker(waitPeriod)
	defer tick.Stop()
	for ending := false; ; {
		var dev *api.Device
		changed, state := m.peers.changed.Next(), api.StateRemoved
		if p := m.peers.get(name); p != nil {
			changed = p.changed.Next()
			dev = p.current(ctx)
		}
		if dev != nil {
			state = dev.State
		}
		switch {
		case slices.Contains(states, state) && dev == nil:
			return &api.Device{Status: api.Status{Name: name, ID: -1, State: api.StateRemoved}}, nil
		case slices.Contains(states, state):
			return dev, nil
		case dev == nil && !m.peers.busy(name):
			return nil, api.Errorf(api.CodeNotFound, "there is no device %q", name)
		case ending:
			return nil, api.Errorf(api.CodeStopping, "the manager has ended while device %q was %s", name, state)
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-m.alive.Done():
			ending = true
		case <-ctx.Done():
			return nil, api.Errorf(api.CodeInternal, "device %q is %s: %w", name, state, ctx.Err())
		}
	}
}

// serveWait answers when the state is there.
func (f *front) serveWait(w http.ResponseWriter, r *http.Request, name string) {
	answer(w)(f.m.Wait(r.Context(), name, r.URL.Query()["state"]))
}
