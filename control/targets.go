package control

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"holdfast/api"
	"holdfast/manager/target"
	"holdfast/standby"
)

// targetInterval is how often targets are looked at: a device is exported for at most so
// long without its lease.
const targetInterval = 500 * time.Millisecond

// targets follows what targets export: each kind that runs holds the key, and a lease
// on each of our devices that it exports. Its name is the holder's and the consumer's.
type targets struct {
	kinds []target.Kind

	mu     sync.Mutex
	states []target.KindState
	told   map[target.Kind]bool // has been read once; before, nothing is known of it
	held   map[target.Kind]bool // the key
	leases map[lease]bool
}

// lease is one that this taker has. The device itself is part of it: another one of the
// same name has none yet.
type lease struct {
	kind target.Kind
	name string
	dev  live
}

func newTargets(names []string) (*targets, error) {
	t := &targets{held: map[target.Kind]bool{}, told: map[target.Kind]bool{}, leases: map[lease]bool{}}
	if names == nil {
		t.kinds = target.Kinds
	}
	for _, name := range names {
		k := target.Kind(name)
		if !slices.Contains(target.Kinds, k) {
			return nil, api.Errorf(api.CodeInvalid, "target %q: there are lio, scst and tgt", name)
		}
		t.kinds = append(t.kinds, k)
	}
	return t, nil
}

func (t *targets) watches(name string) bool { return slices.Contains(t.kinds, target.Kind(name)) }

func (t *targets) info() []api.TargetInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []api.TargetInfo{}
	for _, k := range t.kinds {
		info := api.TargetInfo{Kind: string(k), Devices: []string{}}
		for _, st := range t.states {
			if st.Kind == k {
				info.Present = st.Present
				if st.Err != nil {
					info.Error = st.Err.Error()
				}
			}
		}
		for l := range t.leases {
			if l.kind == k {
				info.Devices = append(info.Devices, l.name)
			}
		}
		slices.Sort(info.Devices)
		out = append(out, info)
	}
	return out
}

// watchTargets runs until ctx ends.
func (d *Daemon) watchTargets(ctx context.Context) {
	if len(d.targets.kinds) == 0 {
		return
	}
	target.Watch(ctx, d.cfg.TargetRoots, d.targets.kinds, targetInterval, func(states []target.KindState) {
		d.targets.mu.Lock()
		defer d.targets.mu.Unlock()
		for _, st := range states {
			if st.Err != nil {
				d.log.Warn().Err(st.Err).Msgf("target %s can't be read now; its leases stay as they are", st.Kind)
				continue
			}
			d.targets.told[st.Kind] = true
		}
		d.targets.states = states
		d.applyTargets()
	})
}

// devicesChanged brings the leases in line after a device came or went.
func (d *Daemon) devicesChanged() {
	d.changed.ring()
	d.targets.mu.Lock()
	defer d.targets.mu.Unlock()
	d.applyTargets()
}

// applyTargets makes key and leases what the targets want; targets.mu is held. The key
// is on before the first lease is taken, and until the last has been dropped.
func (d *Daemon) applyTargets() {
	t := d.targets
	lives := d.lives()
	want := map[lease]bool{}
	for _, st := range t.states {
		if st.Present && !t.held[st.Kind] {
			t.held[st.Kind] = true
			if err := d.enableKey(string(st.Kind)); err != nil {
				d.log.Error().Msg(err.Error())
			}
			d.tell("", api.EventTarget, "target %s is there: it holds the standby check on", st.Kind)
		}
		for _, b := range st.Backings {
			for name, dev := range lives {
				if slices.Contains(b.Disks, filepath.Base(dev.Path())) {
					want[lease{st.Kind, name, dev}] = true
				}
			}
		}
	}
	for l := range want {
		if t.leases[l] {
			continue
		}
		t.leases[l] = true
		d.noteLease(l, true)
		if err := l.dev.Attach(string(l.kind)); err != nil && !errors.Is(err, standby.ErrAttached) {
			d.log.Error().Err(err).Str("device", l.name).Msgf("target %s: no lease", l.kind)
		}
	}
	for l := range t.leases {
		if want[l] || !t.told[l.kind] {
			continue
		}
		delete(t.leases, l)
		if lives[l.name] == l.dev {
			_ = l.dev.Detach(string(l.kind)) // it has one
			d.noteLease(l, false)
		}
	}
	for _, st := range t.states {
		if !st.Present && t.held[st.Kind] && t.told[st.Kind] {
			delete(t.held, st.Kind)
			if err := d.disableKey(string(st.Kind)); err != nil { // it holds it
				d.log.Warn().Msg(err.Error())
			}
			d.tell("", api.EventTarget, "target %s is gone: it no longer holds the standby check on", st.Kind)
		}
	}
}
