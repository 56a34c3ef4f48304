package manager

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

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
	dated    time.Time   // when something happened that an answer to an earlier question doesn't show

	rec      *state.Record // without a server: the device's, nil: none
	inDriver bool          // which waits in the driver
	looked   bool          // these two are known

	ending   int       // the process that has removed the device, and is about to end; 0: none
	launched time.Time // when it was last told to start; zero: it was not
	wanted   bool      // and could not be told
	tried    time.Time // when that was tried, or asked about, last

	mounts []string // where its images are, as the launcher was told
}

func newPeer(all *peers, name string) *peer {
	p := &peer{name: name, all: all, client: api.NewServerClient(all.cfg.RunDir, name), wake: make(chan struct{}, 1), first: make(chan struct{}), turn: make(chan struct{}, 1)}
	p.seen.state, p.seen.since = api.ServerNone, all.cfg.now()
	return p
}

// firstPause is the first time between two looks at a server of which something has changed.
const firstPause = 20 * time.Millisecond

// run watches the server until the device is gone.
func (p *peer) run(ctx context.Context) {
	p.adopt(ctx)
	pause := firstPause
	var looked sync.Once
	for ctx.Err() == nil {
		was := p.state()
		p.observe(ctx)
		looked.Do(func() { close(p.first) })
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

// outline is what others wait for a change of. Not for each answer: who waits asks when he is woken.
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
	pid, held := state.Probe(p.all.cfg.RunDir, p.name)
	switch {
	case !held:
		p.absent(ctx)
	case p.all.cfg.dying(pid):
		p.newServer(ctx, pid)
		p.set(func(o *observation) { o.state, o.pid, o.wrong = api.ServerDying, pid, "" })
	case p.isEnding(pid):
	default:
		p.mu.Lock()
		same := p.seen.state == api.ServerUp && p.seen.pid == pid
		p.mu.Unlock()
		if !same {
			p.newServer(ctx, pid)
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

// removed notes that the server has removed the device, and so is about to end: what it said of
// the device before is over, and it gets no further command.
func (p *peer) removed() {
	p.set(func(o *observation) {
		o.ending = o.pid
		o.state, o.report, o.asOf, o.rec, o.looked, o.launched = api.ServerNone, nil, time.Time{}, nil, true, time.Time{}
	})
	p.nudge()
}

// newServer notes whose lock it is. What another process said before counts no more.
func (p *peer) newServer(ctx context.Context, pid int) {
	p.mu.Lock()
	o := &p.seen
	if o.pid != pid {
		o.pid, o.info, o.report, o.asOf, o.looked = pid, api.ServerInfo{}, nil, time.Time{}, false
	}
	known := o.looked || !o.asOf.IsZero()
	p.mu.Unlock()
	if !known {
		p.recall(ctx)
	}
}

// absent notes that there is no server.
func (p *peer) absent(ctx context.Context) {
	p.recall(ctx)
	p.set(func(o *observation) {
		o.state = api.ServerNone
		if since := p.all.cfg.now().Sub(o.launched); !o.launched.IsZero() && since >= 0 && since < p.all.cfg.pace.start {
			o.state = api.ServerStarting
		}
		o.pid, o.info, o.report, o.asOf, o.ending = 0, api.ServerInfo{}, nil, time.Time{}, 0
	})
}

// recall finds out what the record and the driver say of the device.
func (p *peer) recall(ctx context.Context) {
	rec, _, err := p.all.records.ReadOne(p.name)
	there := false
	if err == nil && rec != nil && rec.BootID == p.all.boot && rec.ID >= 0 {
		ctx, cancel := context.WithTimeout(ctx, p.all.cfg.pace.ask)
		there, err = p.all.cfg.driver.has(ctx, rec)
		cancel()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	o := &p.seen
	o.rec, o.looked = rec, true
	if err == nil {
		o.inDriver = there
	} else {
		o.wrong = err.Error() // and what was known of the driver stays
	}
}

// ask has the server say what there is of its device, and waits for a bounded time. What it doesn't
// say says something, too: it is silent. Its answer is still taken in when it comes, since on a machine
// that is busy enough none comes in time.
func (p *peer) ask(ctx context.Context) {
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
		p.quiet(p.observation().pid)
	}
}

// quiet notes that a process doesn't answer.
func (p *peer) quiet(pid int) {
	state := api.ServerSilent
	if p.all.cfg.dying(pid) {
		state = api.ServerDying
	}
	p.set(func(o *observation) {
		if o.pid == pid {
			o.state = state
		}
	})
}

// inquire asks the server for as long as anybody may wait for its answer.
func (p *peer) inquire() {
	ctx, cancel := context.WithTimeout(p.all.life, p.all.cfg.pace.answer)
	defer cancel()
	q := p.all.question()
	o := p.observation()
	p.inquiries(o.pid, 1)
	defer p.inquiries(o.pid, -1)
	info, err := &o.info, error(nil)
	if info.PID == 0 {
		info, err = p.client.Server(ctx)
	}
	var dev *api.Device
	if err == nil {
		dev, err = p.client.BriefDevice(ctx, p.name)
	}
	switch {
	case p.observation().pid != o.pid: // there is another process by now
	case err == nil || api.CodeOf(err) == api.CodeNotFound:
		p.answered(q, info, dev)
	case p.all.life.Err() != nil:
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED):
		p.set(func(o *observation) {
			if o.state != api.ServerDying {
				o.state = api.ServerStarting
			}
		})
	case api.CodeOf(err) == api.CodeUnreachable && ctx.Err() == nil && !errors.Is(err, unix.EAGAIN):
		p.nudge() // it has hung up: most likely it has ended
	default:
		p.quiet(o.pid)
	}
}

// inquiries counts the questions that a process has not answered, and says how many these are. Those to
// another process before it count no more.
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
		o.state, o.wrong, o.launched, o.looked = api.ServerUp, "", time.Time{}, false
		if info != nil {
			o.info = *info
			if o.pid == 0 {
				o.pid = info.PID
			}
		}
		if q.asked.Before(o.asked) && !o.asOf.IsZero() && q.asked.Add(time.Hour).After(o.asked) {
			return // by less than a clock is set back
		}
		o.report, o.question, o.asOf = dev, q, p.all.cfg.now()
	})
	p.all.targets.nudge()
}

// look is the device as it is now: from a server that is up, or else from what is known of it. nil:
// there is none.
func (p *peer) look(ctx context.Context) *api.Device {
	if p.state() == api.ServerUp {
		p.ask(ctx)
	}
	return p.device()
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
