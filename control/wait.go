package control

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"holdfast/api"
)

// StateRemoved is what a wait calls a device that there is not.
const StateRemoved = "removed"

// States are all that a device can be waited for in.
var States = []string{
	api.StateLive, api.StateHung, api.StateParked, api.StateStandby, api.StateFailing, api.StateReplacing, api.StateStopped,
	StateCreating, StateRemoving, StateRecovering, StateUnrecovered, StateUnreleased, StateWaiting, StateLost, StateRemoved,
}

// waitPeriod is how often a wait looks by itself: not every change of a live device's state
// is an event.
const waitPeriod = time.Second

// Wait returns when the device is in one of the states, with what it is then: for StateRemoved
// its name and that. A device that is gone and not waited for as removed is CodeNotFound; a
// daemon that ends is CodeStopping.
func (d *Daemon) Wait(ctx context.Context, name string, states []string) (*Device, error) {
	if err := checkStates(states); err != nil {
		return nil, err
	}
	tick := time.NewTicker(waitPeriod)
	defer tick.Stop()
	ending := false
	for {
		changed := d.changed.next()
		state := d.stateOf(name)
		switch {
		case slices.Contains(states, state) && state == StateRemoved:
			return &Device{Status: api.Status{Name: name, ID: -1, State: StateRemoved}}, nil
		case slices.Contains(states, state):
			dev, err := d.BriefDevice(name)
			if err == nil {
				dev.State = state // what it was a moment ago was waited for
			}
			return dev, err
		case state == StateRemoved:
			return nil, fail(CodeNotFound, "there is no device %q", name)
		case ending:
			return nil, fail(CodeStopping, "the daemon has ended while device %q was %s", name, state)
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-d.closing:
			ending = true
		case <-ctx.Done():
			return nil, fail(CodeInternal, "device %q is %s: %w", name, state, ctx.Err())
		}
	}
}

func checkStates(states []string) error {
	if len(states) == 0 {
		return fail(CodeInvalid, "no state is given to wait for")
	}
	for _, s := range states {
		if !slices.Contains(States, s) {
			return fail(CodeInvalid, "%q is not a state of a device: there are %s", s, strings.Join(States, ", "))
		}
	}
	return nil
}

// stateOf is a device's state, StateRemoved if there is none of that name.
func (d *Daemon) stateOf(name string) string {
	d.mu.Lock()
	s := d.slots[name]
	if s == nil || s.rec == nil {
		d.mu.Unlock()
		return StateRemoved
	}
	dev, phase, state := s.dev, s.phase, s.waitState()
	d.mu.Unlock()
	switch {
	case phase == StateRecovering:
		return state
	case phase != "":
		return phase
	case dev == nil:
		return StateLost
	}
	return dev.Status().State
}

// serveWait answers when the state is there.
func (d *Daemon) serveWait(w http.ResponseWriter, r *http.Request, name string) {
	answer(w)(d.Wait(r.Context(), name, r.URL.Query()["state"]))
}

// The pause before a client connects anew to a daemon that is gone doubles from the first to
// the longest.
const (
	firstReconnect   = 100 * time.Millisecond
	longestReconnect = 2 * time.Second
)

// Wait returns when the device is in one of the states; see Daemon.Wait. It waits in the
// daemon and asks nothing meanwhile. While there is no daemon, as during a restart or an
// upgrade, it waits for the next one.
func (c *Client) Wait(ctx context.Context, name string, states []string) (*Device, error) {
	if err := checkStates(states); err != nil {
		return nil, err
	}
	path := devicePath(name) + "/wait?" + url.Values{"state": states}.Encode()
	for pause := firstReconnect; ; pause = min(2*pause, longestReconnect) {
		dev, err := call[Device](ctx, c, http.MethodGet, path, nil)
		if code := CodeOf(err); err == nil || ctx.Err() != nil || code != CodeUnreachable && code != CodeStopping || errors.Is(err, fs.ErrPermission) {
			return dev, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
}
