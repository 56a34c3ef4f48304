package manager

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/state"
)

// fakeHost is a launcher whose servers are in this process, a driver that has their devices, and
// what tells whether a process is dying. Whatever a manager sees of a server, it sees by its
// socket, its lock and its record, as of a real one.
type fakeHost struct {
	t             *testing.T
	run, stateDir string
	boot          string

	mu       sync.Mutex             // may be taken with a server's, and never the other way round
	servers  map[string]*fakeServer // that have a process
	wanted   map[string]bool
	binaries map[string]string
	broken   map[string]bool // programs that end at once
	restarts map[string]int

	processor sync.Mutex   // there is one, and
	busy      atomic.Int64 // so many nanoseconds an answer takes of it
	enabled   map[string]bool
	mounts    map[string][]string
	calls     map[string]int // of the launcher, by method and name
	startErr  error
	mute      bool          // servers begin silent
	making    chan struct{} // creations wait for it
	forks     bool          // it can adopt
	missed    bool          // what was to be started at boot

	disks    map[int]state.Disk // in the driver, served or not
	pids     int
	dead     map[int]bool // that are dying
	asked    map[string]int
	gather   *sync.WaitGroup // has questions for a status wait until so many are out
	inUse    map[string][]api.User
	scans    int
	scanHold chan struct{}
	notReady error
	hasErr   error  // of the driver, when it is asked for a device
	hasAsked func() // is called then
}

func newFakeHost(t *testing.T, run, stateDir string) *fakeHost {
	h := &fakeHost{t: t, run: run, stateDir: stateDir, boot: state.BootID(), servers: map[string]*fakeServer{}, wanted: map[string]bool{}, binaries: map[string]string{},
		broken: map[string]bool{}, restarts: map[string]int{}, enabled: map[string]bool{}, mounts: map[string][]string{}, calls: map[string]int{}, forks: true,
		disks: map[int]state.Disk{}, pids: 5_000_000, dead: map[int]bool{}, asked: map[string]int{}, inUse: map[string][]api.User{}}
	t.Cleanup(func() {
		for _, s := range h.all() {
			s.end()
		}
	})
	return h
}

func (h *fakeHost) all() (all []*fakeServer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.servers {
		all = append(all, s)
	}
	return all
}

func (h *fakeHost) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

// server is a device's, which must have one.
func (h *fakeHost) server(name string) *fakeServer {
	h.t.Helper()
	var s *fakeServer
	waitFor(h.t, "the server of "+name, func() bool {
		h.mu.Lock()
		s = h.servers[name]
		h.mu.Unlock()
		return s != nil && s.listens() // it has read what the one before left
	})
	return s
}

func (h *fakeHost) called(what string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls[what]
}

func (h *fakeHost) records() state.Records {
	return state.Records{Dir: filepath.Join(h.stateDir, "devices"), Run: h.run, Boot: h.boot}
}

// Start implements Launcher.
func (h *fakeHost) Start(ctx context.Context, name string) error {
	h.mu.Lock()
	h.calls["start "+name]++
	err := h.startErr
	h.wanted[name] = err == nil
	there := h.servers[name] != nil
	h.mu.Unlock()
	if err == nil && !there {
		h.spawn(name)
	}
	return err
}

// spawn starts a process, which ends at once if its program is broken.
func (h *fakeHost) spawn(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken[h.binaries[name]] {
		h.restarts[name]++
		return
	}
	if h.servers[name] != nil {
		return
	}
	h.pids++
	s := newFakeServer(h, name, h.pids, h.binaries[name])
	if h.mute {
		s.silence()
	}
	h.servers[name] = s
	go s.live()
}

// ended is told of a process that has ended.
func (h *fakeHost) ended(s *fakeServer, code int) {
	h.mu.Lock()
	if h.servers[s.name] == s {
		delete(h.servers, s.name)
	}
	again := code != 0 && h.wanted[s.name]
	if again {
		h.restarts[s.name]++
	}
	h.mu.Unlock()
	if again {
		h.spawn(s.name)
	}
}

func (h *fakeHost) Stop(ctx context.Context, name string) error {
	h.mu.Lock()
	h.calls["stop "+name]++
	h.wanted[name] = false
	s := h.servers[name]
	h.mu.Unlock()
	if s != nil {
		go s.terminate()
	}
	return nil
}

// Missed is asked only if the launcher doesn't fork.
func (h *fakeHost) Missed(ctx context.Context, name string) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls["missed "+name]++
	return h.missed && h.servers[name] == nil, nil
}

func (h *fakeHost) Enable(ctx context.Context, name string, on bool) error {
	h.set(func() { h.enabled[name] = on })
	return nil
}

func (h *fakeHost) Mounts(ctx context.Context, name string, paths []string) error {
	h.set(func() { h.mounts[name] = paths })
	return nil
}

func (h *fakeHost) SetBinary(ctx context.Context, name, path string) error {
	h.set(func() { h.binaries[name] = path })
	return nil
}

func (h *fakeHost) Forget(ctx context.Context, name string) error {
	h.set(func() { h.calls["forget "+name]++; delete(h.wanted, name) })
	return nil
}

func (h *fakeHost) Restarts(ctx context.Context, name string) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.restarts[name], nil
}

func (h *fakeHost) Log(name string) string { return "the log of " + name }

// Close implements Launcher.
func (h *fakeHost) Close() error { return nil }

func (h *fakeHost) List(ctx context.Context) (names []string, err error) {
	for _, s := range h.all() {
		names = append(names, s.name)
	}
	slices.Sort(names)
	return names, nil
}

// adopting is a fakeHost that can be told of processes.
type adopting struct{ *fakeHost }

func (h adopting) Adopt(name string, pid int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls["adopt "+name]++
	if s := h.servers[name]; s == nil || s.pid != pid {
		return fmt.Errorf("process %d is not of %s", pid, name)
	}
	h.wanted[name] = true
	return nil
}

// Of the driver:

func (h *fakeHost) ready() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.notReady
}

func (h *fakeHost) has(ctx context.Context, rec *state.Record) (bool, error) {
	h.mu.Lock()
	asked := h.hasAsked
	h.mu.Unlock()
	if asked != nil {
		asked()
	}
	h.mu.Lock()
	err := h.hasErr
	h.mu.Unlock()
	return err == nil && h.hasDisk(rec), err
}

// hasDisk is what a server of the device finds in the driver.
func (h *fakeHost) hasDisk(rec *state.Record) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, ok := h.disks[rec.ID]
	return ok && d == rec.Disk(h.stateDir)
}

func (h *fakeHost) ours(context.Context) (all []state.Disk, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.disks {
		all = append(all, d)
	}
	return all, nil
}

func (h *fakeHost) timeoutAttr(context.Context, int) (path, value string, err error) {
	return "", "", nil
}

func (h *fakeHost) delete(ctx context.Context, d state.Disk) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.disks[d.ID] != d {
		return errors.New("it is another device by now")
	}
	delete(h.disks, d.ID)
	return nil
}

func (h *fakeHost) close() {}

// addDisk is what a server makes in the driver.
func (h *fakeHost) addDisk(tag state.Tag) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := 0; ; id++ {
		if _, is := h.disks[id]; !is {
			h.disks[id] = state.Disk{ID: id, Tag: tag}
			return id
		}
	}
}

func (h *fakeHost) dying(pid int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dead[pid]
}

// find searches users.
func (h *fakeHost) find(disks map[int]string) (map[int][]api.User, error) {
	h.mu.Lock()
	h.scans++
	hold := h.scanHold
	h.mu.Unlock()
	if hold != nil {
		<-hold
	}
	out := map[int][]api.User{}
	for _, s := range h.all() {
		if id := s.id(); id >= 0 {
			if _, ok := disks[id]; ok {
				h.mu.Lock()
				out[id] = h.inUse[s.name]
				h.mu.Unlock()
			}
		}
	}
	return out, nil
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
