package manager

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/internal/users"
	"holdfast/manager/launch"
	"holdfast/manager/target"
	"holdfast/state"
	"holdfast/sysfs/fusefs"
)

// Config is what a manager needs to know.
type Config struct {
	RunDir   string // absolute; holds the socket; made if missing
	StateDir string // absolute; holds the records; made if missing
	Version  string // of the program, for clients
	Build    string // identifies the program's file
	// MetricsListen is the address, host:port, of a listener for Prometheus; "": none.
	// The figures are on the socket in any case.
	MetricsListen string
	// Targets are the kinds of targets that are watched: lio, scst, tgt. nil: all.
	Targets     []string
	TargetRoots target.Roots
	NoTree      bool            // don't mount the attribute tree
	Launcher    launch.Launcher // of servers; Close doesn't close it
	Log         zerolog.Logger

	// For tests:
	sys    string // /sys
	driver driver
	find   func(disks map[int]string) (map[int][]api.User, error) // users
	dying  func(pid int) bool
	exe    func(pid int) string // the program of a process
	now    func() time.Time
	pace   pace
}

// pace is how fast things are done.
type pace struct {
	ask    time.Duration // see askTime
	answer time.Duration // until a question is given up; so long a command waits for a server that is silent
	check  time.Duration // between two looks at a server that is up
	retry  time.Duration // and at one that isn't
	start  time.Duration // until a server that was started must answer
	save   time.Duration // between two saves of positions in journals
	scan   time.Duration // between two looks at the directories
	again  time.Duration // between two starts of a server that can't be started
	serve  time.Duration // until the successor of an upgraded server must serve
}

// askTime is how long a server may take to tell about its device.
const askTime = time.Second

var defaultPace = pace{ask: askTime, answer: 10 * time.Second, check: 5 * time.Second, retry: time.Second, start: 30 * time.Second,
	save: time.Second, scan: 5 * time.Second, again: 10 * time.Second, serve: 60 * time.Second}

func (c *Config) complete() {
	if c.sys == "" {
		c.sys = "/sys"
	}
	if c.driver == nil {
		c.driver = &kernelDriver{stateDir: c.StateDir}
	}
	if c.dying == nil {
		c.dying = api.Dying
	}
	if c.exe == nil {
		c.exe = func(pid int) string { return fmt.Sprintf("/proc/%d/exe", pid) }
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.pace == (pace{}) {
		c.pace = defaultPace
	}
}

// A Manager serves a host. Its parts each have a lock of their own; here is what makes one of them.
type Manager struct {
	cfg     Config
	log     zerolog.Logger
	boot    string
	started time.Time

	peers   *peers
	events  *events
	check   *check
	targets *targets
	hooks   *hooks
	orphans *orphans
	tree    *tree
	search  users.Search
	rolling atomic.Bool // an upgrade is under way

	front   *front
	locks   []*state.DirLock
	metrics *http.Server
	mounted *fusefs.Server

	alive    context.Context
	end      context.CancelFunc
	tasks    sync.WaitGroup
	closing  sync.Once
	stopping atomic.Bool // all servers have been told to end
}

// Start takes the directories, adopts the servers that there are, starts those that are missing,
// and opens the socket. Serve then answers. It waits for no server but for a first answer, and no
// longer than for one: who asks at once is to be told what there is.
func Start(cfg Config) (_ *Manager, err error) {
	cfg.complete()
	m := &Manager{cfg: cfg, log: cfg.Log, boot: state.BootID(), started: cfg.now()}
	m.alive, m.end = context.WithCancel(context.Background())
	m.search.Find = cfg.find
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	if err := m.lockDirs(); err != nil {
		return nil, err
	}
	if err := m.assemble(); err != nil {
		return nil, err
	}
	if m.front, err = m.listen(); err != nil {
		return nil, err
	}
	if err := m.listenMetrics(); err != nil {
		return nil, err
	}
	if err := cfg.driver.ready(); err != nil {
		m.log.Warn().Msgf("devices cannot be served yet: %v", err)
	}
	if err := m.peers.scan(); err != nil {
		return nil, err
	}
	for _, do := range []func(context.Context){m.peers.watch, m.events.run, m.check.watch, m.targets.watch, m.orphans.run} {
		m.tasks.Go(func() { do(m.alive) })
	}
	m.peers.settle(m.alive)
	m.mountTree()
	return m, nil
}

// managerDir is what the manager remembers, in the run directory: see the package's text.
const managerDir = "manager"

// lockDirs makes the directories, and takes them.
func (m *Manager) lockDirs() error {
	if err := state.Run(m.cfg.RunDir).Create(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(m.cfg.RunDir, managerDir), 0o700); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(m.cfg.StateDir, "devices"), 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	for _, l := range []struct{ dir, what string }{{m.cfg.RunDir, "run directory"}, {m.cfg.StateDir, "state directory"}} {
		lock, err := state.LockDir(l.dir, l.what)
		if err != nil {
			return err
		}
		m.locks = append(m.locks, lock)
	}
	return nil
}

// assemble makes the parts, and has them know those that they need.
func (m *Manager) assemble() error {
	cfg := &m.cfg
	dir := filepath.Join(cfg.RunDir, managerDir)
	m.events = newEvents(filepath.Join(dir, "events.json"), m.boot, cfg.pace.save, m.log)
	m.hooks = newHooks(filepath.Join(dir, "hooks.json"), m.boot, cfg.RunDir, m.log, m.events.emit)
	m.events.floor = m.hooks.floor
	var err error
	if m.check, err = openCheck(cfg.RunDir, m.boot, m.log, m.events); err != nil {
		return err
	}
	if m.targets, err = newTargets(cfg, m.check, m.events); err != nil {
		return err
	}
	m.peers = newPeers(m)
	m.targets.peers = m.peers
	m.orphans = newOrphans(cfg, m.peers)
	m.tree = newTree(m)
	m.check.restore(m.targets)
	return nil
}

// Info says who this manager is.
func (m *Manager) Info() api.DaemonInfo {
	return api.DaemonInfo{Version: m.cfg.Version, API: api.APIVersion, PID: os.Getpid(), Started: m.started.UTC(),
		RunDir: m.cfg.RunDir, StateDir: m.cfg.StateDir, Stopping: m.stopping.Load()}
}

// closeWait bounds the wait for what the manager does in the background.
const closeWait = 5 * time.Second

// Close ends the manager, and no server.
func (m *Manager) Close() {
	m.closing.Do(func() {
		m.end()
		if m.mounted != nil {
			if err := m.mounted.Unmount(); err != nil {
				m.log.Warn().Msgf("the attribute tree: %v", err)
			}
		}
		if m.metrics != nil {
			m.metrics.Close()
		}
		m.front.close()
		done := make(chan struct{})
		go func() { m.tasks.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(closeWait):
			m.log.Warn().Msgf("what this manager does in the background has not ended within %v, and is not waited for", closeWait)
		}
		m.front.remove()
		if m.check != nil {
			m.check.release()
		}
		m.cfg.driver.close()
		for _, l := range m.locks {
			l.Release()
		}
	})
}
