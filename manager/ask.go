package manager

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/state"
)

// ask has the server say what there is of its device, and waits for a bounded time. What it doesn't
// say says something, too: it is silent. Its answer is still taken in when it comes, since on a
// machine that is busy enough none comes in time.
func (p *peer) ask(ctx context.Context) {
	before := p.observation()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.inquire()
	}()
	late := time.NewTimer(p.all.cfg.pace.ask)
	defer late.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	case <-late.C:
		p.quiet(&before)
	}
}

// quiet records that the process of before doesn't answer. One that has answered meanwhile isn't
// silent, if only another question.
func (p *peer) quiet(before *observation) {
	dying := p.all.cfg.dying(before.pid)
	p.set(func(o *observation) {
		switch {
		case o.pid != before.pid:
		case dying:
			o.state = api.ServerDying
		case o.heard == before.heard:
			o.state = api.ServerSilent
		}
	})
}

// inquire asks the server for as long as anybody may wait for its answer.
func (p *peer) inquire() {
	ctx, cancel := context.WithTimeout(p.all.life, p.all.cfg.pace.answer)
	defer cancel()
	q := p.all.question()
	before := p.observation()
	p.inquiries(before.pid, 1)
	defer p.inquiries(before.pid, -1)
	info, err := &before.info, error(nil)
	if info.PID == 0 {
		info, err = p.client.Server(ctx)
	}
	var dev *api.Device
	if err == nil {
		dev, err = p.client.BriefDevice(ctx, p.name)
	}
	switch {
	case p.observation().pid != before.pid: // there is another process by now
	case err == nil || api.CodeOf(err) == api.CodeNotFound:
		p.answered(q, info, dev)
	case p.all.life.Err() != nil:
	case api.CodeOf(err) == api.CodeUnreachable && ctx.Err() == nil && !errors.Is(err, unix.EAGAIN) && !p.locked():
		p.absent(ctx, &before) // it has ended, and what it said last is over
		p.nudge()
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED):
		p.set(func(o *observation) {
			if o.state != api.ServerDying && o.heard == before.heard {
				o.state = api.ServerStarting
			}
		})
	case api.CodeOf(err) == api.CodeUnreachable && ctx.Err() == nil && !errors.Is(err, unix.EAGAIN):
		p.nudge() // it has hung up: most likely it has ended
	default:
		p.quiet(&before)
	}
}

// locked says that a process has the device's lock.
func (p *peer) locked() bool {
	_, held := state.Probe(p.all.cfg.RunDir, p.name)
	return held
}

// inquiries counts the questions that a process has not answered, and says how many these are.
// Those to another process before it count no more.
func (p *peer) inquiries(pid, more int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.askedPID != pid {
		if more <= 0 {
			return 0
		}
		p.askedPID, p.unanswered = pid, 0
	}
	p.unanswered = max(p.unanswered+more, 0)
	return p.unanswered
}

// answered takes in what a server has said; dev nil: there is no device. Of two answers the one
// that was asked for later counts.
func (p *peer) answered(q question, info *api.ServerInfo, dev *api.Device) {
	p.set(func(o *observation) {
		if o.ending != 0 && o.ending == o.pid {
			return // it was asked before it removed the device
		}
		o.state, o.wrong, o.unsure, o.launched, o.driverAsked = api.ServerUp, "", "", time.Time{}, false
		o.heard++
		if info != nil {
			// What was seen of the lock may be older: only its holder answers.
			o.info, o.pid = *info, info.PID
		}
		if q.asked.Before(o.asked) && !o.asOf.IsZero() && q.asked.Add(time.Hour).After(o.asked) {
			return // by less than a clock is set back
		}
		o.report, o.question, o.asOf = dev, q, p.all.cfg.now()
	})
	p.all.targets.nudge()
}

// current is the device as it is now: from a server that is up, or else from what is known of it.
// nil: there is none.
func (p *peer) current(ctx context.Context) *api.Device {
	if p.state() == api.ServerUp {
		p.ask(ctx)
	}
	return p.device()
}
