package manager

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"holdfast/api"
	"holdfast/state"
)

// adopt has the launcher keep a server that another manager has started, or starts one for a device
// that needs it. It is the first thing that is done for each peer. false: which process that is
// can't be told yet.
func (p *peer) adopt(ctx context.Context) bool {
	before := p.observation()
	pid, held := state.Probe(p.all.cfg.RunDir, p.name)
	launcher, forks := p.all.cfg.Launcher.(adopter)
	if held {
		p.newServer(ctx, pid, &before)
		if !forks {
			return true
		}
		if pid = p.observation().pid; pid == 0 {
			return false
		}
		if err := launcher.Adopt(p.name, pid); err != nil {
			p.all.log.Warn().Err(err).Str("device", p.name).Msg("its server goes on, and is not started again when it ends")
		}
		return true
	}
	p.absent(ctx, &before)
	if o := p.observation(); o.rec != nil && !p.all.stopped.Load() && needsServer(o.rec, o.inDriver, forks) {
		p.set(func(o *observation) { o.wanted = true })
		p.launch(ctx)
	}
	return true
}

// needsServer says of a device without one, at the manager's start, whether it is to have one: its
// I/O waits, or it is to be created again. At boot that is also so for those that were closed
// cleanly; where a service manager starts these, it does so by itself.
func needsServer(rec *state.Record, inDriver, forks bool) bool {
	return inDriver || rec.Spec.Persist && (!rec.Closed || forks)
}

// Wanted says whether a device is to have a server after one that has ended, nobody knows how: it
// has a record, and was not closed in order. It is for the launcher (see launch.ForkConfig).
func Wanted(runDir, stateDir string) func(name string) bool {
	records := state.Records{Dir: filepath.Join(stateDir, "devices"), Run: runDir, Boot: state.BootID()}
	return func(name string) bool {
		rec, _, err := records.ReadOne(name)
		return err != nil || rec != nil && !rec.Closed
	}
}

// launch has the launcher start the server.
func (p *peer) launch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.all.cfg.pace.start)
	defer cancel()
	err := p.all.cfg.Launcher.Start(ctx, p.name)
	p.set(func(o *observation) {
		o.tried = p.all.cfg.now()
		if err != nil {
			o.wrong = fmt.Sprintf("it can't be started: %v", err)
			return
		}
		o.launched, o.wanted, o.wrong = p.all.cfg.now(), false, ""
		if o.state == api.ServerNone {
			o.state = api.ServerStarting
		}
	})
	p.nudge()
	if err != nil {
		p.all.log.Error().Err(err).Str("device", p.name).Msg("its server can't be started")
		return api.Errorf(api.CodeInternal, "the server of device %q can't be started: %w", p.name, err)
	}
	return nil
}

// ensure waits until there is a server that answers, and has one started if there is none.
func (p *peer) ensure(ctx context.Context) error {
	if p.state() == api.ServerUp {
		return nil
	}
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return api.Errorf(api.CodeBusy, "device %q: gave up waiting for another operation on it: %w", p.name, ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, p.all.cfg.pace.start)
	defer cancel()
	again := time.NewTicker(p.all.cfg.pace.retry)
	defer again.Stop()
	for start := true; ; {
		changed := p.changed.Next()
		switch p.state() {
		case api.ServerUp:
			return nil
		case api.ServerSilent:
			if err := p.awaitAnswer(ctx); err != nil {
				return err
			}
			continue
		case api.ServerDying:
			return p.unreachable()
		}
		if pid, held := state.Probe(p.all.cfg.RunDir, p.name); held && p.isEnding(pid) {
			select {
			case <-time.After(firstPause):
				continue
			case <-ctx.Done():
				return api.Errorf(api.CodeBusy, "the server of device %q that was removed, process %d, has not ended yet: %w", p.name, pid, ctx.Err())
			}
		}
		if start {
			if p.all.stopped.Load() {
				return api.Errorf(api.CodeStopping, "the servers of all devices are being stopped")
			}
			if err := p.launch(ctx); err != nil {
				return err
			}
			start = false
			continue
		}
		select {
		case <-changed:
		case <-again.C:
			// One that was about to end may have been there yet.
			start = p.state() == api.ServerNone || p.state() == api.ServerStarting
		case <-ctx.Done():
			return api.Errorf(api.CodeUnreachable, "the server of device %q was started, and has not answered within %v: the host is busy, or something is wrong; what it says: %s: %w", p.name, p.all.cfg.pace.start, p.all.cfg.Launcher.Log(p.name), ctx.Err())
		}
	}
}

// patience is how long a command still waits for a silent server to answer, which one on a busy
// host may do late: one that is starting as long as for its start, and another one as long as for
// the answer to a question, since it fell silent.
func (p *peer) patience() time.Duration {
	o := p.observation()
	now := p.all.cfg.now()
	if starting := now.Sub(o.launched); !o.launched.IsZero() && starting >= 0 {
		return p.all.cfg.pace.start - starting
	}
	if silent := now.Sub(o.since); silent >= 0 {
		return p.all.cfg.pace.answer - silent
	}
	return 0
}

// awaitAnswer waits while the server is silent, as long as a command does.
func (p *peer) awaitAnswer(ctx context.Context) error {
	for {
		changed := p.changed.Next()
		left := p.patience()
		switch {
		case p.state() != api.ServerSilent:
			return nil
		case left <= 0:
			return p.unreachable()
		}
		select {
		case <-changed:
		case <-time.After(left):
		case <-ctx.Done():
			return p.unreachable()
		}
	}
}

// unreachable says why the device's server can't be asked now.
func (p *peer) unreachable() *api.Error {
	o := p.observation()
	file := "its images"
	if dev := p.device(); dev != nil {
		file = storageOf(dev)
	}
	switch o.state {
	case api.ServerDying:
		return api.Errorf(api.CodeUnreachable, "device %q: %s; bring it back, or abort that mount", p.name, dyingText(o.pid, file))
	case api.ServerSilent:
		return api.Errorf(api.CodeUnreachable, "device %q: its server, process %d, lives and has not answered since %s", p.name, o.pid, api.Clock(o.since))
	}
	return api.Errorf(api.CodeUnreachable, "device %q has no server now", p.name)
}
