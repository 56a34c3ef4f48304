package manager

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/manager/target"
)

// targetInterval is how often targets are looked at: a device is exported for at most so
// long without its lease. So often leases are tried again, too, that a server could not take.
const targetInterval = 500 * time.Millisecond

// targets follows what targets export: each kind that runs holds the standby check, and a lease on
// each of our devices that it exports. Its name is the holder's and the consumer's. What a server
// has is read from its reports, and brought in line with what is wanted until it is.
type targets struct {
	kinds  []target.Kind
	roots  target.Roots
	log    zerolog.Logger
	check  *check
	events *events
	peers  *peers
	limit  time.Duration // of one lease
	wake   chan struct{}

	mu     sync.Mutex
	states []target.KindState
	read   map[target.Kind]bool // has been read once; before, nothing is known of it
	held   map[target.Kind]bool // the check
	busy   map[string]bool      // devices whose server is being asked
	said   map[string]string    // why a lease failed, by device
}

func newTargets(cfg *Config, c *check, ev *events) (*targets, error) {
	t := &targets{roots: cfg.TargetRoots, log: cfg.Log, check: c, events: ev, limit: 5 * cfg.pace.ask, wake: make(chan struct{}, 1),
		read: map[target.Kind]bool{}, held: map[target.Kind]bool{}, busy: map[string]bool{}, said: map[string]string{}}
	if cfg.Targets == nil {
		t.kinds = target.Kinds
	}
	for _, name := range cfg.Targets {
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
	states := slices.Clone(t.states)
	t.mu.Unlock()
	out := []api.TargetInfo{}
	for _, k := range t.kinds {
		info := api.TargetInfo{Kind: string(k), Devices: []string{}}
		for _, st := range states {
			if st.Kind == k {
				info.Present = st.Present
				if st.Err != nil {
					info.Error = st.Err.Error()
				}
			}
		}
		for _, dev := range t.peers.known() {
			if slices.Contains(dev.Standby.Consumers, string(k)) {
				info.Devices = append(info.Devices, dev.Name)
			}
		}
		out = append(out, info)
	}
	return out
}

// nudge has leases looked at now.
func (t *targets) nudge() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// watch runs until ctx ends.
func (t *targets) watch(ctx context.Context) {
	if len(t.kinds) == 0 {
		return
	}
	var scans sync.WaitGroup
	defer scans.Wait()
	scans.Go(func() {
		target.Watch(ctx, t.roots, t.kinds, targetInterval, func(states []target.KindState) {
			t.mu.Lock()
			for _, st := range states {
				if st.Err != nil {
					t.log.Warn().Err(st.Err).Msgf("target %s can't be read now; its leases stay as they are", st.Kind)
					continue
				}
				t.read[st.Kind] = true
			}
			t.states = states
			t.mu.Unlock()
			t.nudge()
		})
	})
	tick := time.NewTicker(targetInterval)
	defer tick.Stop()
	for {
		select {
		case <-t.wake:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		t.apply(ctx)
	}
}

// apply brings the check and leases nearer to what the targets want. The check is on before the
// first lease is taken, and until no server that answers has one. Only watch calls it.
func (t *targets) apply(ctx context.Context) {
	t.mu.Lock()
	states := slices.Clone(t.states)
	t.mu.Unlock()
	for _, st := range states {
		if st.Present && t.hold(st.Kind, true) {
			if err := t.check.enable(string(st.Kind)); err != nil {
				t.log.Warn().Msg(err.Error())
			}
			t.events.emit("", api.EventTarget, "target %s is there: it holds the standby check on", st.Kind)
		}
	}
	leased := map[target.Kind]bool{}
	for _, p := range t.peers.list() {
		o := p.observation()
		if o.state != api.ServerUp || o.report == nil || o.report.Path == "" {
			continue
		}
		disk := filepath.Base(o.report.Path)
		for _, st := range states {
			has := slices.Contains(o.report.Standby.Consumers, string(st.Kind))
			want := st.Present && slices.ContainsFunc(st.Backings, func(b target.Backing) bool { return slices.Contains(b.Disks, disk) })
			leased[st.Kind] = leased[st.Kind] || has
			if has != want && (want || t.isRead(st.Kind)) {
				t.lease(ctx, p, st.Kind, want)
			}
		}
	}
	for _, st := range states {
		if !st.Present && !leased[st.Kind] && t.isRead(st.Kind) && t.hold(st.Kind, false) {
			if err := t.check.disable(string(st.Kind)); err != nil { // it holds it
				t.log.Warn().Msg(err.Error())
			}
			t.events.emit("", api.EventTarget, "target %s is gone: it no longer holds the standby check on", st.Kind)
		}
	}
}

func (t *targets) isRead(k target.Kind) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.read[k]
}

// hold records whether a kind holds the check; true: that is new.
func (t *targets) hold(k target.Kind, on bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held[k] == on {
		return false
	}
	t.held[k] = on
	return true
}

// lease has a server take or drop a lease, unless it is at that already. What fails is tried again
// by the next apply.
func (t *targets) lease(ctx context.Context, p *peer, k target.Kind, on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy[p.name] {
		return
	}
	t.busy[p.name] = true
	t.peers.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, t.limit)
		defer cancel()
		q := t.peers.question()
		dev, err := p.client.TargetLease(ctx, p.name, string(k), on)
		if err == nil {
			p.answered(q, nil, dev)
		}
		t.mu.Lock()
		delete(t.busy, p.name)
		said := t.said[p.name]
		delete(t.said, p.name)
		if err != nil {
			t.said[p.name] = err.Error()
		}
		t.mu.Unlock()
		switch {
		case err != nil && err.Error() != said && ctx.Err() == nil:
			t.log.Error().Err(err).Str("device", p.name).Msgf("target %s: no lease yet", k)
		case err == nil:
			t.nudge() // there may be more
		}
	})
}
