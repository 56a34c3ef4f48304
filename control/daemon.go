package control

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/internal/spawner"
	"holdfast/internal/users"
	"holdfast/manager/target"
	"holdfast/standby"
	"holdfast/state"
	"holdfast/sysfs"
	"holdfast/sysfs/fusefs"
)

// Config is what a daemon needs to know.
type Config struct {
	RunDir   string // holds the socket; made if missing
	StateDir string // holds the records; made if missing
	Version  string // of the program, for clients
	// MetricsListen is the address, host:port, of a listener for Prometheus; "": none.
	// The figures are on the socket in any case.
	MetricsListen string
	// Targets are the kinds of targets that are watched: lio, scst, tgt. nil: all.
	Targets     []string
	TargetRoots target.Roots
	NoTree      bool // don't mount the attribute tree
	// Prepare, if not nil, is called once the directories are this daemon's, before any
	// device is touched.
	Prepare func()
	// Binary is the program's file, absolute, and Args its arguments: what an upgrade starts.
	Binary string
	Args   []string
	// Spawner starts programs: hooks, heirs, tgtadm. nil: they are started directly, and
	// don't begin while any device's storage hangs.
	Spawner *spawner.Spawner

	sys string // /sys, but in tests
	Log zerolog.Logger
}

func (c *Config) sysRoot() string {
	if c.sys == "" {
		return "/sys"
	}
	return c.sys
}

// A Daemon serves devices by name.
type Daemon struct {
	cfg     Config
	log     zerolog.Logger
	kernel  kernel
	records state.Records
	boot    string
	started time.Time
	// settle is how long a remove waits for udev's own look at the device.
	settle time.Duration
	// poll is how often a shutdown looks again at devices in use.
	poll time.Duration

	key     *holders        // of the standby check,
	word    *state.Key      // whether it is on,
	check   *standby.Switch // and what follows from that
	stopKey func()
	handMu  sync.Mutex // one change of the key by hand at a time
	keyMu   sync.Mutex // of its file
	targets *targets
	events  eventLog
	root    *sysfs.Dir // the attribute tree

	locks         []*state.DirLock
	listener      net.Listener
	socketOwned   bool // and not a service manager's
	server        *http.Server
	metricsServer *http.Server
	treeServer    *fusefs.Server
	closing       chan struct{} // closed by Close

	upgrading    atomic.Bool
	handedOver   chan struct{}
	handOverOnce sync.Once
	socketFile   *os.File      // the listener's, to listen again after an upgrade that failed
	taken        chan struct{} // told when it does
	cfgMu        sync.Mutex    // for what an upgrade changes:
	gone         bool          // everything is another's
	heirPID      int           // whose
	closed       atomic.Bool
	watching     sync.WaitGroup // the watch on targets
	changed      bell           // rings when a device's state may be another
	scans        users.Search

	// creating ends when the daemon is told to stop: creations are taken back.
	creating     context.Context
	stopCreating context.CancelFunc

	restored                 chan struct{} // see Restored
	mounts                   bell          // rings when something was mounted
	restoredOnce, mountsOnce sync.Once

	// alive ends with the daemon: recoveries go on while it waits for users of devices.
	alive   context.Context
	endLife context.CancelFunc

	mu            sync.Mutex
	slots         map[string]*slot
	problems      []api.Problem
	orphans       map[int]state.Tag // devices of ours in the driver that have no record
	driverProblem string            // why the last creation failed, if the kernel was the reason
	stopping      bool
}

// A slot is a name in the daemon's table. It exists while there is a record or
// while an operation is under way.
type slot struct {
	name string
	op   chan struct{} // holds one token while an operation runs

	looking atomic.Bool // at the images, for a recovery
	recMu   sync.Mutex  // one change of a live device's record at a time; before mu
	hooks   hooks

	// Under Daemon.mu:
	waiters int
	rec     *state.Record // nil: the name is free
	dev     live          // nil: creating, or lost
	phase   string        // "", StateCreating, StateRemoving, StateRecovering, StateWaiting
	failing failing       // what fails the I/O of a device that can't be recovered; nil: nothing
	problem string
	// unreleased: the last attempt to recover it found that the driver takes it for served.
	unreleased      bool
	unreleasedSince time.Time // of the token's holder; zero: it isn't
	events          []api.Event

	errors      int // failed requests since errorsSince
	errorsSince time.Time
}

// Start takes the directories, reads the records, clears away what an earlier
// daemon of ours left in the kernel, and opens the socket. Serve then answers.
func Start(cfg Config) (*Daemon, error) {
	cfg.TargetRoots.Output = cfg.Spawner.Output
	return start(cfg, newKernel(&cfg))
}

func start(cfg Config, k kernel) (_ *Daemon, err error) {
	d := &Daemon{
		cfg: cfg, log: cfg.Log, kernel: k, boot: state.BootID(), started: time.Now(),
		records: state.Records{Dir: filepath.Join(cfg.StateDir, "devices"), Run: cfg.RunDir, Boot: state.BootID(), Failed: new(atomic.Pointer[string])},
		settle:  3 * time.Second, poll: time.Second,
		scans: users.Search{Find: k.users},
		slots: map[string]*slot{}, closing: make(chan struct{}), restored: make(chan struct{}), orphans: map[int]state.Tag{}, handedOver: make(chan struct{}), taken: make(chan struct{}, 1),
	}
	if d.targets, err = newTargets(cfg.Targets); err != nil {
		return nil, err
	}
	d.root = d.tree()
	d.creating, d.stopCreating = context.WithCancel(context.Background())
	d.alive, d.endLife = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if err := state.Run(cfg.RunDir).Create(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(d.records.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	heir, err := inherit()
	if err != nil {
		return nil, err
	}
	if heir != nil {
		// The socket is the other daemon's again if this one doesn't start.
		defer func() {
			if err != nil {
				d.socketOwned = false
			}
		}()
		// What can be found wrong before the other daemon has stopped, is.
		if err := d.kernel.ready(); err != nil {
			return nil, err
		}
	}
	if err := heir.wait(); err != nil {
		return nil, err
	}
	if err := d.lockDirs(); err != nil {
		return nil, err
	}
	if err := d.openKey(); err != nil {
		return nil, err
	}
	if cfg.Prepare != nil {
		cfg.Prepare()
	}
	if err := d.readRecords(); err != nil {
		return nil, err
	}
	if err := d.kernel.ready(); err != nil {
		d.log.Warn().Msgf("devices cannot be served yet: %v", err)
	}
	if err := d.listen(heir); err != nil {
		return nil, err
	}
	if err := d.listenMetrics(d.metricsHandler()); err != nil {
		return nil, err
	}
	d.mountTree()
	d.restoreKey()
	d.recoverAll()
	d.restore()
	d.watching.Go(func() { d.watchTargets(d.creating) })
	go heir.tell(d)
	return d, nil
}

// lockDirs takes the directories.
func (d *Daemon) lockDirs() error {
	for _, l := range []struct{ dir, what string }{{d.cfg.RunDir, "run directory"}, {d.cfg.StateDir, "state directory"}} {
		lock, err := state.LockDir(l.dir, l.what)
		if err != nil {
			for _, l := range d.locks {
				l.Release()
			}
			d.locks = nil
			return err
		}
		d.locks = append(d.locks, lock)
	}
	return nil
}

// readRecords fills the table with what earlier daemons left behind.
func (d *Daemon) readRecords() error {
	recs, problems, err := d.records.Load()
	if err != nil {
		return err
	}
	d.problems = problems
	for _, p := range problems {
		d.log.Error().Str("file", p.File).Msgf("%s; %s", p.Reason, p.Advice)
	}
	for _, rec := range recs {
		d.slots[rec.Spec.Name] = &slot{name: rec.Spec.Name, op: make(chan struct{}, 1), rec: rec}
	}
	return nil
}

func lostAdvice(name string) string {
	return fmt.Sprintf("'holdfast create %s' with the same images serves it again, 'holdfast remove %s' closes the images cleanly and forgets it", name, name)
}

// Close waits so long for what the daemon does in the background, and for its last answers.
const (
	closeWait  = 10 * time.Second
	answerWait = 500 * time.Millisecond
)

// Close ends the server and gives the directories back. It doesn't touch
// devices: Shutdown does.
func (d *Daemon) Close() {
	d.stopCreating()
	d.endLife()
	watched := make(chan struct{})
	go func() { d.watching.Wait(); close(watched) }()
	select {
	case <-watched:
	case <-time.After(closeWait):
		d.log.Warn().Msg("something of this daemon hangs in storage that doesn't answer, and is not waited for")
	}
	if !d.closed.Swap(true) {
		close(d.closing)
	}
	if d.treeServer != nil {
		if err := d.treeServer.Unmount(); err != nil {
			d.log.Warn().Msgf("the attribute tree: %v", err)
		}
	}
	if d.metricsServer != nil {
		d.metricsServer.Close()
	}
	if d.server != nil {
		// Those who wait for a state are answered.
		ctx, cancel := context.WithTimeout(context.Background(), answerWait)
		_ = d.server.Shutdown(ctx)
		cancel()
		d.server.Close()
	} else if d.listener != nil {
		d.listener.Close()
	}
	if d.socketOwned && !d.isGone() {
		os.Remove(d.SocketPath())
	}
	d.kernel.close()
	d.releaseKey()
	for _, l := range d.locks {
		l.Release()
	}
}

func (d *Daemon) isGone() bool {
	d.cfgMu.Lock()
	defer d.cfgMu.Unlock()
	return d.gone
}

// acquire takes the token of a name, making the name's slot if there is none.
func (d *Daemon) acquire(ctx context.Context, name string) (*slot, error) {
	d.mu.Lock()
	s := d.slots[name]
	if s == nil {
		s = &slot{name: name, op: make(chan struct{}, 1)}
		d.slots[name] = s
	}
	s.waiters++
	d.mu.Unlock()
	select {
	case s.op <- struct{}{}:
		return s, nil
	case <-ctx.Done():
		d.drop(s)
		return nil, api.Errorf(api.CodeBusy, "device %q: gave up waiting for another operation on it: %w", name, ctx.Err())
	}
}

func (d *Daemon) release(s *slot) {
	<-s.op
	d.drop(s)
}

func (d *Daemon) drop(s *slot) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.waiters--
	if s.waiters == 0 && s.rec == nil {
		delete(d.slots, s.name)
	}
}

// set changes a slot under the lock.
func (d *Daemon) set(s *slot, change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
	d.changed.ring()
}

// maxEvents is how many events of a device are kept for show.
const maxEvents = 16

// Failed requests can come by the thousands a second; only the first so many in each
// period are events, or nothing else would be found among them. Figures have them all.
const (
	ioErrorBurst  = 5
	ioErrorPeriod = 10 * time.Second
)

// worthTelling says whether one more failed request is an event.
func (d *Daemon) worthTelling(s *slot) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); now.Sub(s.errorsSince) > ioErrorPeriod {
		s.errorsSince, s.errors = now, 0
	}
	s.errors++
	return s.errors <= ioErrorBurst
}

// event is the taker of a device's events, which the device has logged.
func (d *Daemon) event(s *slot) func(api.Event) {
	return func(e api.Event) {
		if e.Kind == api.EventIOError && !d.worthTelling(s) {
			return
		}
		d.addEvent(e)
		d.mu.Lock()
		if len(s.events) == maxEvents {
			s.events = append(s.events[:0], s.events[1:]...)
		}
		s.events = append(s.events, e)
		dev := s.dev
		if dev != nil && movesStandby[e.Kind] {
			d.watching.Go(func() { d.noteStandby(s, dev) })
		}
		var spec api.Spec
		if s.rec != nil {
			spec = s.rec.Spec
		}
		d.mu.Unlock()
		if dev != nil {
			d.runHook(s, spec, dev, e)
		}
	}
}
