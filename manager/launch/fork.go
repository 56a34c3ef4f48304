package launch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// ForkConfig is what a [Fork] starts.
type ForkConfig struct {
	Binary string         // the program, an absolute path
	Args   []string       // its arguments before NAME
	Env    []string       // its whole environment, KEY=VALUE
	Dir    string         // a process's log is Dir/NAME/log, mode 0600; from 1 MiB on it is log.1 at the next start
	Log    zerolog.Logger // of the launcher
	// Wanted says whether a NAME is to have a process after an adopted one that ended, nobody
	// knows how. It is called without any lock, and must return. nil: it is.
	Wanted func(name string) bool
}

// sweepEvery is how often it is seen whether processes are dying, which takes some tens of
// microseconds each.
const sweepEvery = 2 * time.Second

// Fork is the launcher that needs nobody else. Starting a process takes what fork and exec take,
// and those of all processes wait for each other: the program should be on local storage.
type Fork struct {
	config ForkConfig
	closed atomic.Bool
	stop   chan struct{}
	group  sync.WaitGroup // goroutines

	mu      sync.Mutex // after keeper.mu
	keepers map[string]*keeper

	// time.AfterFunc, but for tests.
	after func(time.Duration, func()) *time.Timer
}

var _ Launcher = (*Fork)(nil)

// NewFork makes a launcher, which Close ends. It has all descriptors of the calling process but 0,
// 1 and 2 be closed in the processes that this starts from now on, those too that it was itself
// started with.
func NewFork(c ForkConfig) (*Fork, error) {
	return newFork(c, time.NewTicker(sweepEvery).C) // which ends with its last use
}

func newFork(c ForkConfig, tick <-chan time.Time) (*Fork, error) {
	if !filepath.IsAbs(c.Binary) || !filepath.IsAbs(c.Dir) {
		return nil, fmt.Errorf("launching needs absolute paths, of the program %q and of the directory %q", c.Binary, c.Dir)
	}
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("keeping descriptors from processes: %w", err)
	}
	f := &Fork{config: c, stop: make(chan struct{}), keepers: map[string]*keeper{}, after: time.AfterFunc}
	f.group.Go(func() { f.sweeps(tick) })
	return f, nil
}

// Start implements [Launcher].
func (f *Fork) Start(ctx context.Context, name string) error {
	k, err := f.lock(ctx, name)
	if err != nil {
		return err
	}
	defer k.unlock()
	return k.start()
}

// Adopt has the process that another launcher has started for NAME be kept as those of this one.
// The error is os.ErrProcessDone if it has ended, and another if the process is not one of NAME:
// its last argument isn't that.
func (f *Fork) Adopt(name string, pid int) error {
	k, err := f.lock(context.Background(), name)
	if err != nil {
		return err
	}
	defer k.unlock()
	if k.process != nil {
		if k.process.pid == pid {
			return nil
		}
		return fmt.Errorf("adopting process %d of %s: it has process %d", pid, name, k.process.pid)
	}
	p, err := find(name, pid)
	if err != nil {
		return fmt.Errorf("adopting the process of %s: %w", name, err)
	}
	k.pause()
	k.wanted = true
	k.keep(p)
	return nil
}

// Stop implements [Launcher].
func (f *Fork) Stop(ctx context.Context, name string) error {
	k, err := f.lock(ctx, name)
	if err != nil {
		return err
	}
	defer k.unlock()
	k.wanted, k.anew = false, false
	k.pause()
	if k.process == nil {
		return nil
	}
	return k.process.signal(unix.SIGTERM)
}

// Enable implements [Launcher].
func (f *Fork) Enable(ctx context.Context, name string, on bool) error { return f.nothing(ctx, name) }

// Mounts implements [Launcher].
func (f *Fork) Mounts(ctx context.Context, name string, paths []string) error {
	return f.nothing(ctx, name)
}

func (f *Fork) nothing(ctx context.Context, name string) error {
	k, err := f.lock(ctx, name)
	if err == nil {
		k.unlock()
	}
	return err
}

// SetBinary implements [Launcher].
func (f *Fork) SetBinary(ctx context.Context, name, path string) error {
	if path != "" && !filepath.IsAbs(path) {
		return fmt.Errorf("the program of %s: %q is no absolute path", name, path)
	}
	k, err := f.lock(ctx, name)
	if err != nil {
		return err
	}
	defer k.unlock()
	k.binary = path
	return nil
}

// Forget implements [Launcher].
func (f *Fork) Forget(ctx context.Context, name string) error {
	k, err := f.lock(ctx, name)
	if err != nil {
		return err
	}
	defer k.unlock()
	k.wanted, k.anew, k.binary = false, false, ""
	k.pause()
	if err := removeLogs(filepath.Join(f.config.Dir, name)); err != nil {
		return fmt.Errorf("removing the logs of %s: %w", name, err)
	}
	return nil
}

// Restarts implements [Launcher].
func (f *Fork) Restarts(ctx context.Context, name string) (int, error) {
	if f.closed.Load() {
		return 0, ErrClosed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.keepers[name]
	if k == nil {
		return 0, nil
	}
	return int(k.restarts.Load()), nil
}

// Log implements [Launcher].
func (f *Fork) Log(name string) string {
	return strconv.Quote(filepath.Join(f.config.Dir, name, logName))
}

// List implements [Launcher].
func (f *Fork) List(ctx context.Context) ([]string, error) {
	if f.closed.Load() {
		return nil, ErrClosed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for name, k := range f.keepers {
		if k.listed.Load() {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list, nil
}

// Close implements [Launcher].
func (f *Fork) Close() error {
	f.mu.Lock()
	if f.closed.Swap(true) {
		f.mu.Unlock()
		return nil
	}
	all := slices.Collect(maps.Values(f.keepers))
	f.mu.Unlock()
	close(f.stop)
	for _, k := range all {
		k.close()
	}
	f.group.Wait()
	return nil
}

// lock gives a name to one caller until unlock.
func (f *Fork) lock(ctx context.Context, name string) (*keeper, error) {
	if err := errors.Join(ctx.Err(), checkName(name)); err != nil {
		return nil, err
	}
	for {
		f.mu.Lock()
		if f.closed.Load() {
			f.mu.Unlock()
			return nil, ErrClosed
		}
		k := f.keepers[name]
		if k == nil {
			k = &keeper{fork: f, name: name, log: f.config.Log.With().Str("device", name).Logger()}
			f.keepers[name] = k
		}
		f.mu.Unlock()
		k.mu.Lock()
		if f.closed.Load() {
			k.mu.Unlock()
			return nil, ErrClosed
		}
		if !k.gone {
			return k, nil
		}
		k.mu.Unlock()
	}
}

// sweeps finds processes that were killed and can't end.
func (f *Fork) sweeps(tick <-chan time.Time) {
	for {
		select {
		case <-f.stop:
			return
		case <-tick:
		}
		f.mu.Lock()
		all := slices.Collect(maps.Values(f.keepers))
		f.mu.Unlock()
		for _, k := range all {
			k.sweep()
		}
	}
}
