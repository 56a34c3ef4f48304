package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/manager/target"
	"holdfast/ploop/image"
)

var ctx = context.Background()

// fixture is a manager, with the host that it manages.
type fixture struct {
	t       *testing.T
	dir     string
	h       *fakeHost
	m       *Manager
	c       *api.Client
	served  chan error
	targets []string
	now     func() time.Time
	ahead   atomic.Int64 // of the time, in nanoseconds: the manager's clock, unless there is now
	pace    pace
}

// testPace is quick where something is done again and again, and patient where something is waited
// for: on a host that is busy everything comes late. Who wants an end of patience sets the
// manager's clock (ahead).
var testPace = pace{ask: askTime, answer: 30 * time.Second, check: 50 * time.Millisecond, retry: 20 * time.Millisecond, start: 30 * time.Second,
	save: 50 * time.Millisecond, scan: 50 * time.Millisecond, again: 20 * time.Millisecond, serve: 60 * time.Second}

func newFixture(t *testing.T) *fixture {
	dir, err := os.MkdirTemp("", "m") // short: there are sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fixture{t: t, dir: dir, targets: []string{}, pace: testPace}
	f.h = newFakeHost(t, f.run(), f.stateDir())
	f.c = api.NewClient(f.run())
	t.Cleanup(func() { f.stop() })
	f.start()
	return f
}

func (f *fixture) run() string      { return filepath.Join(f.dir, "run") }
func (f *fixture) stateDir() string { return filepath.Join(f.dir, "lib") }

func (f *fixture) config() Config {
	cfg := Config{RunDir: f.run(), StateDir: f.stateDir(), Version: "test", Build: "test", Targets: f.targets, NoTree: true, Log: zerolog.Nop(),
		TargetRoots: target.Roots{Configfs: filepath.Join(f.dir, "config"), Sys: filepath.Join(f.dir, "none"), Number: f.number},
		sys:         f.dir, driver: f.h, find: f.h.find, dying: f.h.dying, now: f.now, pace: f.pace}
	if f.now == nil {
		cfg.now = func() time.Time { return time.Now().Add(time.Duration(f.ahead.Load())) }
	}
	cfg.Launcher = adopting{f.h}
	cfg.exe = func(pid int) string {
		if pid > 5_000_000 { // a made-up one
			pid = os.Getpid()
		}
		return fmt.Sprintf("/proc/%d/exe", pid)
	}
	if !f.h.forks {
		cfg.Launcher = f.h
	}
	return cfg
}

// number gives disks numbers, and directories in a tree like sysfs.
func (f *fixture) number(path string) (uint32, uint32, bool) {
	var id uint32
	if _, err := fmt.Sscanf(path, "/dev/ublkb%d", &id); err != nil {
		return 0, 0, false
	}
	at := filepath.Join(f.dir, "none/devices", filepath.Base(path))
	links := filepath.Join(f.dir, "none/dev/block")
	for _, dir := range []string{at, links} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			f.t.Error(err)
		}
	}
	os.Symlink(at, filepath.Join(links, fmt.Sprintf("259:%d", id))) // may be there
	return 259, id, true
}

func (f *fixture) start() {
	f.t.Helper()
	m, err := Start(f.config())
	if err != nil {
		f.t.Fatal(err)
	}
	f.m, f.served = m, make(chan error, 1)
	served := f.served
	go func() { served <- m.Serve() }()
}

// stop ends the manager, and no server.
func (f *fixture) stop() {
	if f.m == nil {
		return
	}
	f.m.Close()
	if err := <-f.served; err != nil {
		f.t.Errorf("serve: %v", err)
	}
	f.m = nil
}

func (f *fixture) restart() {
	f.t.Helper()
	f.stop()
	f.start()
}

// image is a file.
func (f *fixture) image(name string) image.Ref {
	f.t.Helper()
	path := filepath.Join(f.dir, "image-"+name)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	return image.Ref{Path: path}
}

func (f *fixture) spec(name string, images ...string) api.Spec {
	spec := api.Spec{Name: name}
	for _, i := range images {
		spec.Images = append(spec.Images, f.image(i))
	}
	return spec
}

func (f *fixture) create(name string, images ...string) *api.Device {
	f.t.Helper()
	dev, err := f.c.Create(ctx, f.spec(name, images...))
	if err != nil {
		f.t.Fatal(err)
	}
	return dev
}

// states are all devices, by name.
func (f *fixture) states() map[string]string {
	f.t.Helper()
	snap, err := f.c.Brief(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	all := map[string]string{}
	for _, d := range snap.Devices {
		all[d.Name] = d.State
	}
	return all
}

// eventually waits until a device is in a state.
func (f *fixture) eventually(name, state string) {
	f.t.Helper()
	waitFor(f.t, name+" to be "+state, func() bool { return f.states()[name] == state })
}

func wantCode(t *testing.T, err error, code api.Code) *api.Error {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got %v (%s), want %s", err, api.CodeOf(err), code)
	}
	return e
}

// events are those of a device, by kind.
func (f *fixture) events(name string) (kinds []string) {
	f.t.Helper()
	err := f.c.Events(ctx, api.EventsQuery{Device: name}, func(e api.Event) error { kinds = append(kinds, e.Kind); return nil })
	if err != nil {
		f.t.Fatal(err)
	}
	return kinds
}

// arm has errors of a device be held.
func (f *fixture) arm(name string) {
	f.t.Helper()
	if _, err := f.c.SetKey(ctx, true); err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.c.Attach(ctx, name, "test"); err != nil {
		f.t.Fatal(err)
	}
}
