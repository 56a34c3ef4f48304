package manager

import (
	"context"
	"sync"
	"time"

	"holdfast/api"
	"holdfast/internal/cond"
	"holdfast/state"
)

// A peer is one device's server, as seen from here.
type peer struct {
	name   string
	all    *peers
	client *api.Client // of its socket
	wake   chan struct{}
	first  chan struct{} // closed when it has been looked at
	turn   chan struct{} // holds one token while somebody starts it, or clears up after it
	using  int           // operations; under peers.mu

	changed cond.Cond // something of the device may be another

	mu   sync.Mutex
	seen observation
	// unanswered is the number of questions that process askedPID has not answered yet.
	askedPID, unanswered int
	// following: its events are being read. followed is when that began.
	following bool
	followed  time.Time
}

// observation is what was seen last of a server and its device.
type observation struct {
	state string // one of api.Server*
	since time.Time
	pid   int
	wrong string // why it can't be found out

	info api.ServerInfo // of the process pid; zero: it has not said yet

	report   *api.Device // what it said of the device, nil: it said that there is none
	question             // that was the answer to
	asOf     time.Time   // when it answered; zero: nothing was said by this server
	heard    int         // how often any server of the device has answered
	dated    time.Time   // when something happened that an answer to an earlier question doesn't show

	rec         *state.Record // without a server: the device's, nil: none
	inDriver    bool          // which waits in the driver
	unsure      string        // why that is not known now; "": it is
	driverAsked bool          // these were asked for

	ending   int       // the process that has removed the device, and is about to end; 0: none
	launched time.Time // when it was last told to start; zero: it was not
	wanted   bool      // and could not be told
	tried    time.Time // when that was tried, or asked about, last

	mounts []string // where its images are, as the launcher was told
}

func newPeer(all *peers, name string, rec *state.Record) *peer {
	p := &peer{name: name, all: all, client: api.NewServerClient(all.cfg.RunDir, name), wake: make(chan struct{}, 1), first: make(chan struct{}), turn: make(chan struct{}, 1)}
	p.seen.state, p.seen.since, p.seen.rec = api.ServerNone, all.cfg.now(), rec
	p.seen.inDriver = rec != nil && rec.BootID == all.boot && rec.ID >= 0 // until it is looked at
	return p
}

// firstPause is the first time between two looks at a server of which something has changed.
const firstPause = 20 * time.Millisecond

// run watches the server until the device is gone.
func (p *peer) run(ctx context.Context) {
	adopted := p.adopt(ctx)
	pause := firstPause
	var observed sync.Once
	for ctx.Err() == nil {
		was := p.state()
		p.observe(ctx)
		observed.Do(func() { close(p.first) })
		if !adopted {
			adopted = p.adopt(ctx)
		}
		if p.due(ctx) {
			_ = p.launch(ctx) // which is shown
		}
		p.keepMounts(ctx)
		if p.all.dropped(p) {
			return
		}
		switch is := p.state(); {
		case is == api.ServerUp:
			pause = p.all.cfg.pace.check
		case is != was:
			pause = firstPause
		default:
			pause = min(2*pause, p.all.cfg.pace.retry)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-p.wake:
			pause = firstPause
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// nudge has the server be looked at now.
func (p *peer) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *peer) state() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.state
}

// observation is a copy.
func (p *peer) observation() observation {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

// outline is what others wait for a change of. Not for each answer: who waits asks when he is
// woken.
func (o *observation) outline() [2]string {
	switch {
	case o.report != nil:
		return [2]string{o.state, o.report.State}
	case o.rec != nil:
		return [2]string{o.state, unserved(o.rec, o.inDriver)}
	}
	return [2]string{o.state, ""}
}

// set changes what was seen, and wakes those who wait.
func (p *peer) set(change func(o *observation)) {
	p.mu.Lock()
	before, pid := p.seen.outline(), p.seen.pid
	change(&p.seen)
	after := p.seen.outline()
	was, is := before[0], after[0]
	if is != was {
		p.seen.since = p.all.cfg.now()
	}
	same := before == after && pid == p.seen.pid
	p.mu.Unlock()
	if same {
		return
	}
	if is != was {
		p.all.log.Info().Str("device", p.name).Str("server", is).Msgf("its server was %s", was)
	}
	p.changed.Broadcast()
	p.all.changed.Broadcast()
}

// observe looks at the server. One that is up and has not ended is left alone: who wants to
// know more asks it.
func (p *peer) observe(ctx context.Context) {
	before := p.observation()
	pid, held := state.Probe(p.all.cfg.RunDir, p.name)
	switch {
	case !held:
		p.absent(ctx, &before)
	case p.all.cfg.dying(pid):
		p.newServer(ctx, pid, &before)
		p.set(func(o *observation) { o.state, o.pid, o.wrong = api.ServerDying, pid, "" })
	case p.isEnding(pid):
	default:
		same := before.state == api.ServerUp && before.pid == pid
		if !same {
			p.newServer(ctx, pid, &before)
		}
		if !same && p.inquiries(pid, 0) == 0 {
			p.ask(ctx)
		}
		p.follow(ctx)
	}
}

// isEnding says that a process has nothing more to do with the device.
func (p *peer) isEnding(pid int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return pid != 0 && p.seen.ending == pid
}

// removed records that the server has removed the device, and so is about to end: what it said of
// the device before is over, and it gets no further command.
func (p *peer) removed() {
	p.set(func(o *observation) {
		o.ending = o.pid
		o.state, o.report, o.asOf, o.rec, o.driverAsked, o.launched = api.ServerNone, nil, time.Time{}, nil, true, time.Time{}
	})
	p.nudge()
}

// newServer records whose lock it is. What another process said before counts no more: the record
// tells, until this one does. There is no moment between the two, in which nothing would be known
// of the device. Nor does it undo what a server has said since before, when the lock had not been
// looked at.
func (p *peer) newServer(ctx context.Context, pid int, before *observation) {
	p.mu.Lock()
	if pid == 0 { // it can't be told, so the server is to tell
		p.seen.info, pid = api.ServerInfo{}, p.seen.pid
	}
	known := p.seen.pid == pid && (p.seen.driverAsked || !p.seen.asOf.IsZero())
	p.mu.Unlock()
	if known {
		return
	}
	recalled := p.recall(ctx)
	p.set(func(o *observation) {
		recalled(o)
		if o.pid != pid && o.heard == before.heard {
			o.pid, o.info, o.report, o.asOf = pid, api.ServerInfo{}, nil, time.Time{}
		}
	})
}

// absent records that there was no server, unless one has come and answered since before.
func (p *peer) absent(ctx context.Context, before *observation) {
	recalled := p.recall(ctx)
	p.set(func(o *observation) {
		if o.heard != before.heard {
			return
		}
		recalled(o)
		o.state = api.ServerNone
		if since := p.all.cfg.now().Sub(o.launched); !o.launched.IsZero() && since >= 0 && since < p.all.cfg.pace.start {
			o.state = api.ServerStarting
		}
		o.pid, o.info, o.report, o.asOf, o.ending = 0, api.ServerInfo{}, nil, time.Time{}, 0
	})
}

// recall finds out what the record and the driver say of the device, and gives the change of the
// observation.
func (p *peer) recall(ctx context.Context) (change func(o *observation)) {
	rec, _, err := p.all.records.ReadOne(p.name)
	if err != nil {
		return func(o *observation) { o.unsure, o.driverAsked = err.Error(), true } // what was known stays
	}
	there := false
	if rec != nil && rec.BootID == p.all.boot && rec.ID >= 0 {
		ctx, cancel := context.WithTimeout(ctx, p.all.cfg.pace.ask)
		defer cancel()
		if there, err = p.all.cfg.driver.has(ctx, rec); err != nil {
			return func(o *observation) {
				if o.rec == nil || o.rec.ID != rec.ID {
					o.inDriver = true // until the driver says that it isn't
				}
				o.rec, o.unsure, o.driverAsked = rec, "what the driver has of it is not known: "+err.Error(), true
			}
		}
	}
	return func(o *observation) { o.rec, o.inDriver, o.unsure, o.driverAsked = rec, there, "", true }
}

// follow sees to it that the server's events are read.
func (p *peer) follow(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.all.cfg.now()
	if since := now.Sub(p.followed); p.seen.state != api.ServerUp || p.following || since >= 0 && since < p.all.cfg.pace.ask/10 {
		return
	}
	p.following, p.followed = true, now
	p.all.tasks.Go(func() {
		err := p.client.Journal(ctx, p.name, p.all.events.position(p.name), func(e api.Event) error {
			p.all.journal(p, e)
			return nil
		})
		if ctx.Err() == nil {
			p.all.log.Debug().Str("device", p.name).Err(err).Msg("its events have ended")
		}
		p.mu.Lock()
		p.following = false
		p.mu.Unlock()
		p.nudge()
	})
}
