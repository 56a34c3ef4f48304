package launch

import (
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"holdfast/internal/dying"
)

// A keeper keeps the process of one name.
type keeper struct {
	fork     *Fork
	name     string
	log      zerolog.Logger
	listed   atomic.Bool  // there is or will be a process
	restarts atomic.Int64 // what Restarts counts

	mu      sync.Mutex
	gone    bool // no longer in fork.keepers
	wanted  bool // a process that fails is started again
	anew    bool // also one that is stopped or over: Start came after Stop
	binary  string
	process *process   // nil: none, or none but dying ones
	dying   []*process // that were killed, can't end, and have a successor
	backoff backoff
	timer   *time.Timer // of the next start
}

// unlock ends a use of the keeper, and the keeper if it has nothing to keep.
func (k *keeper) unlock() {
	defer k.mu.Unlock()
	if k.gone {
		return
	}
	k.listed.Store(k.process != nil || len(k.dying) > 0 || k.timer != nil)
	if !k.listed.Load() && !k.wanted && k.binary == "" {
		k.gone = true
		k.fork.mu.Lock()
		delete(k.fork.keepers, k.name)
		k.fork.mu.Unlock()
	}
}

// start has a process run, because somebody asks for it.
func (k *keeper) start() error {
	if k.process != nil {
		if status, yes := dying.Process(k.process.pid); yes {
			k.overtake(status)
		}
	}
	if k.process != nil {
		k.anew = k.anew || !k.wanted
		k.wanted = true
		return nil
	}
	k.pause()
	k.backoff = backoff{}
	err := k.spawn()
	if err != nil && k.wanted {
		k.startIn(k.backoff.failed(0))
	}
	k.wanted = k.wanted || err == nil
	return err
}

// spawn starts a process and keeps it.
func (k *keeper) spawn() error {
	log, err := openLog(filepath.Join(k.fork.config.Dir, k.name))
	if err != nil {
		return err
	}
	defer log.Close()
	binary := k.fork.config.Binary
	if k.binary != "" {
		binary = k.binary
	}
	argv := slices.Concat([]string{binary}, k.fork.config.Args, []string{k.name})
	p, err := spawn(argv, k.fork.config.Env, log)
	if err != nil {
		return err
	}
	k.log.Info().Int("pid", p.pid).Str("program", binary).Msg("process started")
	k.keep(p)
	return nil
}

// keep waits for a process's end, on a goroutine.
func (k *keeper) keep(p *process) {
	k.process = p
	k.fork.group.Go(func() {
		defer p.fd.Close()
		e, err := p.wait()
		if k.fork.closed.Load() {
			return
		}
		if err != nil {
			k.log.Error().Int("pid", p.pid).Err(err).Msg("process can't be waited for")
		}
		k.ended(p, e)
	})
}

// ended is the end of a process.
func (k *keeper) ended(p *process, e ending) {
	wanted := e.known || k.fork.config.Wanted == nil || k.fork.config.Wanted(k.name)
	k.mu.Lock()
	defer k.unlock()
	if k.fork.closed.Load() {
		return
	}
	k.log.Info().Int("pid", p.pid).Msg("process ended " + e.String())
	if k.process != p {
		k.dying = slices.DeleteFunc(k.dying, func(d *process) bool { return d == p })
		return
	}
	k.process = nil
	if !wanted {
		k.wanted = false
	}
	k.next(p, e)
}

// next decides what comes after a process.
func (k *keeper) next(p *process, e ending) {
	ran := time.Since(p.began)
	switch {
	case k.anew:
		k.anew, k.backoff = false, backoff{}
		k.startIn(0)
	case !k.wanted:
	case e.is(0):
		k.wanted = false
	case e.is(Again):
		k.restarts.Add(1)
		k.startIn(k.backoff.left(ran))
	default:
		k.restarts.Add(1)
		k.startIn(k.backoff.failed(ran))
	}
}

// startIn starts a process, now or later; one that can't be started, later again.
func (k *keeper) startIn(wait time.Duration) {
	for wait == 0 {
		err := k.spawn()
		if err == nil {
			return
		}
		k.restarts.Add(1)
		wait = k.backoff.failed(0)
		k.log.Error().Err(err).Dur("again_in", wait).Msg("process can't be started")
	}
	var timer *time.Timer
	timer = k.fork.after(wait, func() {
		k.mu.Lock()
		defer k.unlock()
		if k.timer == timer && !k.fork.closed.Load() {
			k.timer = nil
			k.startIn(0)
		}
	})
	k.timer = timer
}

// pause has no process be started by itself.
func (k *keeper) pause() {
	if k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
}

// sweep sees whether the process is dying. It is certain when it was seen twice: any process
// passes through that when it ends.
func (k *keeper) sweep() {
	if !k.mu.TryLock() {
		return
	}
	defer k.unlock()
	if k.process == nil || k.fork.closed.Load() {
		return
	}
	status, yes := dying.Process(k.process.pid)
	if yes && k.process.dying {
		k.overtake(status)
		return
	}
	k.process.dying = yes
}

// overtake starts the successor of a process that is dying, if it is to have one.
func (k *keeper) overtake(status unix.WaitStatus) {
	p := k.process
	k.log.Warn().Int("pid", p.pid).Msg("process was killed and can't end: it waits for storage that doesn't answer")
	k.process = nil
	k.dying = append(k.dying, p)
	k.next(p, ending{status, true})
}

// close leaves the processes alone.
func (k *keeper) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pause()
	for _, p := range append(k.dying, k.process) {
		if p != nil {
			p.fd.Close()
		}
	}
}
