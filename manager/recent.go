package manager

import (
	"context"
	"time"

	"holdfast/api"
)

// question is when a server is asked for its device, and what the answer depends on besides the
// server.
type question struct {
	asked time.Time
	check bool // the standby check is on
}

func (ps *peers) question() question { return question{ps.cfg.now(), ps.check.on()} }

// recent is the device as it was a moment ago, for those who read its attributes one by one: an
// answer that is so young counts for all of them, unless something has happened since it was asked
// for.
func (p *peer) recent(ctx context.Context) *api.Device {
	o := p.observation()
	age := p.all.cfg.now().Sub(o.asked)
	young := !o.asOf.IsZero() && age >= 0 && age < p.all.cfg.pace.ask/10
	if o.state == api.ServerUp && young && o.asked.After(o.dated) && o.check == p.all.check.on() {
		return p.device()
	}
	return p.current(ctx)
}

// outdate records that something has happened to the device, which answers to earlier questions
// don't show.
func (p *peer) outdate() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen.dated = p.all.cfg.now()
}
