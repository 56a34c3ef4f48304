package manager

import (
	"context"
	"errors"
	"time"

	"holdfast/api"
	"holdfast/state"
)

// stopPoll is how often a stop looks whether servers have ended.
const stopPoll = 50 * time.Millisecond

// Stop has all servers end in order, for hosts whose service manager doesn't do so: their devices
// are removed when nobody uses them any more, and persistent ones are created again by the next
// manager. It waits for so long, and says which are left: these go on to wait for their users. From
// then on this manager starts no server.
func (m *Manager) Stop(ctx context.Context, r api.StopRequest) (*api.StopResult, error) {
	if r.Timeout < 0 {
		return nil, api.Errorf(api.CodeInvalid, "time-out %v: want 0 (none) or more", time.Duration(r.Timeout))
	}
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.Timeout))
		defer cancel()
	}
	m.stopping.Store(true)
	all := m.peers.list()
	var failed error
	for _, p := range all {
		failed = errors.Join(failed, m.cfg.Launcher.Stop(ctx, p.name))
	}
	tick := time.NewTicker(stopPoll)
	defer tick.Stop()
	for {
		left := []string{}
		for _, p := range all {
			if _, held := state.Probe(m.cfg.RunDir, p.name); held {
				left = append(left, p.name)
			}
			p.nudge()
		}
		if len(left) == 0 {
			return &api.StopResult{Left: left}, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if failed != nil && !errors.Is(failed, ctx.Err()) {
				return nil, api.Errorf(api.CodeInternal, "not all servers could be told to end: %w", failed)
			}
			return &api.StopResult{Left: left}, nil
		}
	}
}
