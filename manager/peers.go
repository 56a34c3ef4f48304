package manager

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/internal/cond"
	"holdfast/state"
)

// peers are all devices that there are, by name: those that have a record, those whose lock a
// server has, and those that somebody is about to create.
type peers struct {
	cfg     *Config
	log     zerolog.Logger
	boot    string
	run     state.Run
	records state.Records
	check   *check
	targets *targets
	events  *events
	hooks   *hooks
	life    context.Context // the manager's
	stopped *atomic.Bool    // nothing is to be started any more

	changed cond.Cond      // any device's state may be another, or there is one more or less
	tasks   sync.WaitGroup // one for each, and what these begin

	mu       sync.Mutex
	alive    context.Context // of the tasks; nil: not yet
	byName   map[string]*peer
	problems []api.Problem
	scanned  [2]time.Time // when the directories were last changed before the last scan
}

func newPeers(m *Manager) *peers {
	return &peers{cfg: &m.cfg, log: m.log, boot: m.boot, life: m.alive, run: state.Run(m.cfg.RunDir), check: m.check, targets: m.targets, events: m.events, hooks: m.hooks, stopped: &m.stopping,
		records: state.Records{Dir: filepath.Join(m.cfg.StateDir, "devices"), Run: m.cfg.RunDir, Boot: m.boot},
		byName:  map[string]*peer{}}
}

// watch watches all, and looks for new ones from time to time.
func (ps *peers) watch(ctx context.Context) {
	ps.mu.Lock()
	ps.alive = ctx
	for _, p := range ps.byName {
		ps.tasks.Go(func() { p.run(ctx) })
	}
	ps.mu.Unlock()
	tick := time.NewTicker(ps.cfg.pace.scan)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := ps.scan(); err != nil {
				ps.log.Warn().Err(err).Msg("whether there are more devices is not known")
			}
		case <-ctx.Done():
			ps.tasks.Wait()
			return
		}
	}
}

// settle waits until all that there are have been looked at: who asks at once is not to be told of
// devices without servers. A server that doesn't answer is waited for as long as a question takes,
// and the rest of the bound is for a host that is busy.
func (ps *peers) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, ps.cfg.pace.answer)
	defer cancel()
	for _, p := range ps.list() {
		select {
		case <-p.first:
		case <-ctx.Done():
			return
		}
	}
}

// scan enters the devices that have come without us: all of them at the start, and later those of
// servers that somebody else has started, or whose record was put back.
func (ps *peers) scan() error {
	dirs := [2]string{ps.records.Dir, ps.run.Devices()}
	var at [2]time.Time
	for i, dir := range dirs {
		fi, err := os.Stat(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil {
			at[i] = fi.ModTime()
		}
	}
	ps.mu.Lock()
	same := at == ps.scanned
	ps.mu.Unlock()
	if same {
		return nil
	}
	recs, problems, err := ps.records.Read()
	if err != nil {
		return err
	}
	var names []string
	byName := map[string]*state.Record{}
	for _, rec := range recs {
		names = append(names, rec.Spec.Name)
		byName[rec.Spec.Name] = rec
	}
	entries, err := os.ReadDir(dirs[1])
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if !e.IsDir() || !api.IsName(name) || slices.Contains(names, name) {
			continue
		}
		if _, held := state.Probe(ps.cfg.RunDir, name); held {
			names = append(names, name)
			continue
		}
		lock := ps.run.Device(name).Lock()
		if fi, err := os.Lstat(lock); err == nil && !fi.Mode().IsRegular() {
			problems = append(problems, api.Problem{File: lock, Reason: "it is in the way of a device's lock, and is no file", Advice: "remove it: until then no server of that name can start", Device: name})
		}
	}
	slices.SortFunc(problems, func(a, b api.Problem) int { return strings.Compare(a.File, b.File) })
	ps.mu.Lock()
	for _, p := range problems {
		if !slices.Contains(ps.problems, p) {
			ps.log.Error().Str("file", p.File).Msgf("%s; %s", p.Reason, p.Advice)
		}
	}
	ps.problems, ps.scanned = problems, at
	for _, name := range names {
		ps.enter(name, byName[name])
	}
	ps.mu.Unlock()
	return nil
}

// enter is the peer of a name, which is made if there is none; rec is then what is known of the
// device. mu is held.
func (ps *peers) enter(name string, rec *state.Record) *peer {
	p := ps.byName[name]
	if p == nil {
		p = newPeer(ps, name, rec)
		ps.byName[name] = p
		if ctx := ps.alive; ctx != nil {
			ps.tasks.Go(func() { p.run(ctx) })
		}
		ps.changed.Broadcast()
	}
	return p
}

// acquire is the peer of a name for an operation, nil: there is none, and none is to be made. It
// stays until release.
func (ps *peers) acquire(name string, make bool) *peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.byName[name]
	if p == nil && make {
		p = ps.enter(name, nil)
	}
	if p != nil {
		p.using++
	}
	return p
}

func (ps *peers) release(p *peer) {
	ps.mu.Lock()
	p.using--
	ps.mu.Unlock()
	p.nudge()
}

// get is the peer of a name, nil: there is none.
func (ps *peers) get(name string) *peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.byName[name]
}

// busy says that an operation on a name is under way.
func (ps *peers) busy(name string) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.byName[name]
	return p != nil && p.using > 0
}

// list are all, by name.
func (ps *peers) list() []*peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	out := make([]*peer, 0, len(ps.byName))
	for _, p := range ps.byName {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *peer) int { return strings.Compare(a.name, b.name) })
	return out
}

// asksAtOnce is how many servers are asked at once. An answer costs its server and the manager a
// millisecond or more of a processor, so that a thousand who answer at the same time would all be
// too late, and be taken for silent; and so would be few on a machine that is busy. More than keep the
// processors busy gain nothing but that one who hangs keeps fewer waiting.
func asksAtOnce() int { return min(2*runtime.GOMAXPROCS(0), 16) }

// current asks those that are up and gives the devices that there are. What it hasn't come to ask
// when three have had the time to be silent is given as it was last told.
func (ps *peers) current(ctx context.Context) []api.Device {
	all := ps.list()
	devs := make([]*api.Device, len(all))
	over := time.Now().Add(3 * ps.cfg.pace.ask)
	var next atomic.Int64
	var asking sync.WaitGroup
	for range min(asksAtOnce(), len(all)) {
		asking.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(all)); i = next.Add(1) - 1 {
				if time.Now().Before(over) {
					devs[i] = all[i].current(ctx)
				} else {
					devs[i] = all[i].device()
				}
			}
		})
	}
	asking.Wait()
	out := []api.Device{}
	for _, d := range devs {
		if d != nil {
			out = append(out, *d)
		}
	}
	return out
}

// known are the devices that there are, without anybody being asked.
func (ps *peers) known() []api.Device {
	out := []api.Device{}
	for _, p := range ps.list() {
		if d := p.device(); d != nil {
			out = append(out, *d)
		}
	}
	return out
}

// allProblems are what is wrong with files that belong to no device.
func (ps *peers) allProblems() []api.Problem {
	ps.mu.Lock()
	problems := slices.Clone(ps.problems)
	ps.mu.Unlock()
	// A problem is solved by deleting its file.
	return slices.DeleteFunc(problems, func(p api.Problem) bool {
		_, err := os.Lstat(p.File)
		return errors.Is(err, fs.ErrNotExist)
	})
}

// journal takes an event that a server has told.
func (ps *peers) journal(p *peer, e api.Event) {
	p.outdate()
	is := ps.events.take(p.name, e)
	if is.known {
		return
	}
	if is.fresh {
		p.changed.Broadcast()
		ps.changed.Broadcast()
	}
	if is.fresh && e.Kind == api.EventCreated {
		ps.tasks.Go(func() { // one that its server has created by itself
			if d := p.device(); d != nil && d.Path != "" {
				ps.shortenTimeout(ps.alive, p.name, d.ID)
			}
		})
	}
	if is.fresh && e.Kind == api.EventReplaced {
		ps.tasks.Go(func() { p.ask(ps.alive); p.nudge() }) // see keepMounts
	}
	ps.hooks.take(p, e, is.gap, is.at)
	ps.events.handled(p.name)
	ps.targets.nudge()
}

func (ps *peers) shortenTimeout(ctx context.Context, name string, id int) {
	if err := shortenTimeout(ctx, ps.cfg.driver, id); err != nil {
		ps.log.Debug().Err(err).Str("device", name).Msg("after a server's death its recovery may begin half a minute later")
	}
}

// dropped says that a device is gone: it has no server, no record, and nobody is about to change
// that. What it had in the run directory goes, and what the launcher knows of it.
func (ps *peers) dropped(p *peer) bool {
	if o := p.observation(); o.state == api.ServerUp || o.state == api.ServerSilent || o.state == api.ServerDying || o.rec != nil || o.wrong != "" || o.unsure != "" {
		return false
	}
	ps.mu.Lock()
	idle := p.using == 0
	if idle {
		p.using++
	}
	ps.mu.Unlock()
	if !idle {
		return false
	}
	gone := ps.clear(p)
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p.using--
	if !gone || p.using > 0 {
		return false // somebody is about to create it
	}
	delete(ps.byName, p.name)
	ps.events.forget(p.name)
	ps.hooks.forget(p.name)
	p.changed.Broadcast()
	ps.changed.Broadcast()
	return true
}

// clear removes what is left of a device that is gone, if it really is.
func (ps *peers) clear(p *peer) bool {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	default:
		return false
	}
	// While the lock is ours, no server begins. It is tried once.
	now, cancel := context.WithCancel(context.Background())
	cancel()
	lock, err := state.LockDevice(now, ps.cfg.RunDir, p.name, nil)
	if err != nil {
		return false
	}
	rec, problem, err := ps.records.ReadOne(p.name)
	if err != nil || rec != nil || problem != nil {
		lock.Release()
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), ps.cfg.pace.start)
	defer cancel()
	if err := errors.Join(ps.cfg.Launcher.Enable(ctx, p.name, false), ps.cfg.Launcher.Forget(ctx, p.name)); err != nil {
		ps.log.Warn().Err(err).Str("device", p.name).Msg("it is gone, and the launcher can't forget it")
	}
	if err := lock.Remove(); err != nil {
		ps.log.Warn().Err(err).Str("device", p.name).Msg("it is gone, and its directory stays")
	}
	return true
}
