package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"holdfast/api"
)

// shownEvents is how many events a device's picture has.
const shownEvents = 16

// Device is what there is to know of the device, nil if there is none, without its users.
func (s *Server) Device() *api.Device {
	s.mu.Lock()
	rec, dev, phase, problem, state := s.rec, s.dev, s.phase, s.problem, ""
	if rec != nil && dev == nil {
		state = s.state()
	}
	s.mu.Unlock()
	if rec == nil {
		return nil
	}
	d := &api.Device{Created: rec.Created, Persist: rec.Spec.Persist, Problem: problem, Users: []api.User{}, Events: lastEvents(s.journal)}
	switch {
	case dev != nil:
		// Asked without the lock: a Status that has to wait must not stop the server.
		d.Status = dev.Status()
		if phase == Removing {
			d.State = api.StateRemoving
		}
		if problem != "" {
			d.Advice = fmt.Sprintf("see to its storage, then 'holdfast remove %s' again", s.name)
		} else {
			api.Advise(d)
		}
	case phase == Recovering:
		d.Status = rec.Waiting(state, s.sw.On())
		d.Advice = fmt.Sprintf("it is tried again and again; 'holdfast recover %s' tries now, 'holdfast replace %s FILE' takes another file", s.name, s.name)
	default:
		d.Status = rec.Offline()
		d.State = state
		switch phase {
		case Lost:
			d.Advice = lostAdvice(s.name)
		case Waiting:
			d.Advice = fmt.Sprintf("it is tried again and again, and when something is mounted; 'holdfast create %s' with the same images tries now, 'holdfast remove %s' forgets it", s.name, s.name)
		}
	}
	return d
}

func lastEvents(j *Journal) []api.Event {
	_, last := j.Instance()
	events, _ := j.Since("", last-min(last, shownEvents))
	return events
}

// withUsers adds who holds the device.
func (s *Server) withUsers(d *api.Device) {
	if d == nil || d.Path == "" {
		return
	}
	all, err := s.users.Of(map[int]string{d.ID: d.Path})
	if err != nil {
		s.log.Warn().Err(err).Msg("there may be users of the device that are not known")
	}
	d.Users = append(d.Users, all[d.ID]...)
}

// Info says who this server is.
func (s *Server) Info() api.ServerInfo {
	instance, _ := s.journal.Instance()
	s.mu.Lock()
	defer s.mu.Unlock()
	return api.ServerInfo{API: api.APIVersion, Version: s.cfg.Version, Build: s.cfg.Build, Instance: instance, PID: pid(), Name: s.name,
		Phase: string(s.phase), Started: s.started.UTC()}
}

// waitPeriod is how often a wait looks by itself: not every change of a live device's state
// is an event.
const waitPeriod = time.Second

// Wait returns when the device is in one of the states, with what it is then: for StateRemoved
// its name and that. A device that is gone and not waited for as removed is CodeNotFound; a
// server that ends is CodeStopping.
func (s *Server) Wait(ctx context.Context, states []string) (*api.Device, error) {
	if err := api.CheckStates(states); err != nil {
		return nil, err
	}
	tick := time.NewTicker(waitPeriod)
	defer tick.Stop()
	for ending := false; ; {
		changed := s.changed.Next()
		dev := s.Device()
		state := api.StateRemoved
		if dev != nil {
			state = dev.State
		}
		switch {
		case slices.Contains(states, state) && dev == nil:
			return &api.Device{Status: api.Status{Name: s.name, ID: -1, State: state}}, nil
		case slices.Contains(states, state):
			return dev, nil
		case dev == nil:
			return nil, api.Errorf(api.CodeNotFound, "there is no device %q", s.name)
		case ending:
			return nil, api.Errorf(api.CodeStopping, "the server has ended while device %q was %s", s.name, state)
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-s.alive.Done():
			ending = true
		case <-ctx.Done():
			return nil, api.Errorf(api.CodeInternal, "device %q is %s: %w", s.name, state, ctx.Err())
		}
	}
}
