package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/state"
)

// versionTime is how long a program may take to say its version, before any server is upgraded to
// it.
const versionTime = 30 * time.Second

// A roll upgrades servers one by one: each leaves its device in order and is followed by one of the
// new program, for which the requests wait. If that one doesn't serve, the program before it does
// again, and the roll ends.
type roll struct {
	m      *Manager
	binary string // "": the launcher's own

	mu      sync.Mutex
	failed  error // ends it
	results []api.UpgradedServer
}

// Upgrade has the servers of devices be replaced by those of another program, or of what is in the
// place of theirs by now. A device that can't be left stays as it is, and ends nothing. Once begun
// it goes on when ctx ends.
func (m *Manager) Upgrade(ctx context.Context, r api.UpgradeRequest) (*api.UpgradeResult, error) {
	if r.Binary != "" && !filepath.IsAbs(r.Binary) {
		return nil, api.Errorf(api.CodeInvalid, "binary %q: the path is not absolute", r.Binary)
	}
	if r.Parallel < 0 {
		return nil, api.Errorf(api.CodeInvalid, "parallel %d: want 1 or more", r.Parallel)
	}
	if !m.rolling.CompareAndSwap(false, true) {
		return nil, api.Errorf(api.CodeBusy, "an upgrade is under way already")
	}
	defer m.rolling.Store(false)
	names, err := m.toUpgrade(r.Devices)
	if err != nil {
		return nil, err
	}
	if r.Binary != "" {
		if err := tryBinary(ctx, r.Binary); err != nil {
			return nil, api.Errorf(api.CodeInvalid, "the new program %q can't be used, and nothing has changed: %w", r.Binary, err)
		}
	}
	o := &roll{m: m, binary: r.Binary}
	// The manager's end ends it between two devices.
	o.run(context.WithoutCancel(ctx), names, max(r.Parallel, 1))
	res := &api.UpgradeResult{PID: os.Getpid(), Servers: o.results}
	for _, s := range o.results {
		if s.Result == api.UpgradeDone {
			res.Devices++
			res.PauseMS = max(res.PauseMS, s.PauseMS)
		}
		if s.Result == api.UpgradeFailed {
			res.Waiting++
		}
	}
	if o.failed != nil {
		m.events.emit("", api.EventUpgradeFailed, "%v", o.failed)
	}
	return res, nil
}

// toUpgrade are the devices that are meant, all that have a server by default.
func (m *Manager) toUpgrade(names []string) ([]string, error) {
	if len(names) == 0 {
		for _, p := range m.peers.list() {
			if s := p.state(); s != api.ServerNone && s != api.ServerStarting {
				names = append(names, p.name)
			}
		}
		return names, nil
	}
	var out []string
	for _, name := range names {
		name, err := m.resolve(name)
		if err != nil {
			return nil, err
		}
		if m.peers.get(name) == nil {
			return nil, api.Errorf(api.CodeNotFound, "there is no device %q", name)
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// tryBinary has a program say its version: one that can't be executed here, or is no server, is
// found before any device is left to it.
func tryBinary(ctx context.Context, binary string) error {
	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, shell, "-c", `exec "$0" -version`, binary)
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	out, err := cmd.CombinedOutput()
	text, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if ctx.Err() != nil {
		return fmt.Errorf("it has not said its version within %v: %w", versionTime, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("%w: %.200s", err, text)
	}
	if text == "" {
		return errors.New("it does not say its version")
	}
	return nil
}

// run upgrades devices, so many at a time.
func (o *roll) run(ctx context.Context, names []string, parallel int) {
	o.results = make([]api.UpgradedServer, len(names))
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(parallel, len(names)) {
		workers.Go(func() {
			for i := range next {
				s := o.one(ctx, names[i])
				o.mu.Lock()
				o.results[i] = s
				o.mu.Unlock()
			}
		})
	}
	for i := range names {
		next <- i
	}
	close(next)
	workers.Wait()
}

// ended says why no further device is upgraded.
func (o *roll) ended() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed == nil && o.m.alive.Err() != nil {
		o.failed = errors.New("the manager ends")
	}
	return o.failed
}

func (o *roll) end(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed == nil {
		o.failed = err
	}
}

// one upgrades a device's server.
func (o *roll) one(ctx context.Context, name string) (res api.UpgradedServer) {
	res = api.UpgradedServer{Device: name, Result: api.UpgradeSkipped}
	if err := o.ended(); err != nil {
		res.Error = err.Error()
		return res
	}
	p := o.m.peers.acquire(name, false)
	if p == nil {
		res.Error = "it is gone"
		return res
	}
	defer o.m.peers.release(p)
	p.current(ctx)
	if p.state() == api.ServerSilent {
		_ = p.ensure(ctx) // it may only be slow
	}
	before := p.observation()
	res.Was, res.Build, res.Result = before.info.Build, before.info.Build, api.UpgradeKept
	if before.state != api.ServerUp {
		res.Error = p.unreachable().Error()
		return res
	}
	old, err := o.keepBinary(before.pid, name)
	if err != nil {
		// Without a way back there is none forward.
		res.Error = fmt.Sprintf("the program that serves it can't be kept for the case that the new one fails: %v", err)
		return res
	}
	restarts, err := o.m.cfg.Launcher.Restarts(ctx, name)
	if err == nil {
		err = o.m.cfg.Launcher.SetBinary(ctx, name, o.binary)
	}
	if err != nil {
		res.Error = err.Error()
		return res
	}
	began := time.Now()
	if err := p.client.Leave(ctx, name); err != nil {
		_ = o.m.cfg.Launcher.SetBinary(ctx, name, old)
		res.Error = err.Error()
		return res
	}
	err = o.follow(ctx, p, before.pid, restarts)
	if err == nil {
		_ = os.Remove(o.oldBinary(name)) // of a thousand devices they would fill the memory
		res.Result, res.PauseMS, res.Build = api.UpgradeDone, float64(time.Since(began).Microseconds())/1000, p.observation().info.Build
		return res
	}
	res.Result, res.Error = api.UpgradeUndone, fmt.Sprintf("the new program does not serve it: %v", err)
	back := o.back(ctx, p, old)
	res.Build = p.observation().info.Build
	o.end(fmt.Errorf("device %q: %s", name, res.Error))
	if back != nil {
		res.Result = api.UpgradeFailed
		res.Error += fmt.Sprintf("; nor does the one before: %v", back)
	}
	return res
}

// back has the program from before serve again.
func (o *roll) back(ctx context.Context, p *peer, old string) error {
	if err := o.m.cfg.Launcher.SetBinary(ctx, p.name, old); err != nil {
		return err
	}
	// Whatever there is of the new program has to go, with the lock or without; it has no device.
	now := p.observation().pid
	if p.state() != api.ServerUp {
		_ = o.m.cfg.Launcher.Stop(ctx, p.name)
	}
	if err := o.m.cfg.Launcher.Start(ctx, p.name); err != nil {
		return err
	}
	restarts, err := o.m.cfg.Launcher.Restarts(ctx, p.name)
	if err != nil {
		return err
	}
	return o.follow(ctx, p, now, restarts)
}

// follow waits until another process than before serves the device, or a process of a program that
// can't serve has ended, for which nobody is to wait. One may end first, the one from before: so
// there is one restart more than there were.
func (o *roll) follow(ctx context.Context, p *peer, before, restarts int) error {
	ctx, cancel := context.WithTimeout(ctx, o.m.cfg.pace.serve)
	defer cancel()
	again := time.NewTicker(o.m.cfg.pace.retry)
	defer again.Stop()
	for {
		changed := p.changed.Next()
		p.nudge()
		seen := p.observation()
		dev := p.device()
		if seen.state == api.ServerUp && seen.pid != before && dev != nil && !api.Waits(dev.State) && dev.State != api.StateCreating {
			return nil
		}
		select {
		case <-changed:
		case <-again.C:
			if n, err := o.m.cfg.Launcher.Restarts(ctx, p.name); err == nil {
				restarts = min(restarts, n) // they may be counted anew
				if n > restarts+1 && p.state() != api.ServerUp {
					return fmt.Errorf("its process ends without serving it; what it says: %s", o.m.cfg.Launcher.Log(p.name))
				}
			}
			switch p.state() {
			case api.ServerUp:
				p.ask(ctx)
			case api.ServerNone, api.ServerStarting:
				if err := o.m.cfg.Launcher.Start(ctx, p.name); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return fmt.Errorf("it is %s, and its server %s, after %v", stateOf(p.device()), p.state(), o.m.cfg.pace.serve)
		}
	}
}

func stateOf(dev *api.Device) string {
	if dev == nil {
		return "gone"
	}
	return dev.State
}

// keepBinary is a path of the program of a process that stays what it is: where it was started
// from, if it is still there, or else a copy.
func (o *roll) keepBinary(pid int, name string) (path string, err error) {
	exe := o.m.cfg.exe(pid)
	is, err := os.Stat(exe)
	if err != nil {
		return "", err
	}
	if path, err := os.Readlink(exe); err == nil {
		if there, err := os.Stat(path); err == nil && os.SameFile(is, there) {
			return path, nil
		}
	}
	path = o.oldBinary(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	in, err := os.Open(exe)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o700))
	if err != nil {
		return "", err
	}
	defer out.Cleanup()
	if _, err := io.Copy(out, in); err != nil {
		return "", err
	}
	return path, out.CloseAtomicallyReplace()
}

// oldBinary is where the program is kept that served a device before an upgrade: in its directory,
// or, where nothing can be executed there, as in /run on many systems, in the state directory.
func (o *roll) oldBinary(name string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(o.m.cfg.RunDir, &fs); err == nil && fs.Flags&unix.ST_NOEXEC == 0 {
		return filepath.Join(string(state.Run(o.m.cfg.RunDir).Device(name)), "binary.old")
	}
	return filepath.Join(o.m.cfg.StateDir, "binaries", name)
}
