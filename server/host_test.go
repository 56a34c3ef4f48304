package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/state"
)

var ctx = context.Background()

// host is a machine with a fake driver: a server for each device that is spoken of, launched when
// it is, and spoken to on its own socket.
type host struct {
	t     *testing.T
	k     *fakeKernel
	dir   string
	key   *state.Key // as the manager has it
	log   zerolog.Logger
	times times

	mu      sync.Mutex
	running map[string]*process
}

// process is one server of a host.
type process struct {
	s             *Server // nil until it is started
	k             *fakeServer
	term          context.CancelFunc
	force, depart chan struct{}
	killed        chan struct{}
	up            chan struct{} // closed when its socket answers, or it has ended
	ended         chan struct{} // closed after exit and err were set
	exit          int
	err           error
}

func newHost(t *testing.T) *host {
	h := &host{t: t, dir: tempDir(t), log: zerolog.Nop(), running: map[string]*process{}, times: times{
		idle: 10 * patience, stopPoll: 10 * time.Millisecond, settle: 300 * time.Millisecond, inspect: patience,
		closing: patience, answers: 10 * time.Second, mounts: 5 * time.Millisecond}}
	h.k = newFake(t, h.stateDir())
	for _, dir := range []string{h.runDir(), h.records().Dir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if h.key, err = state.CreateKey(h.runDir(), h.log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for name := range h.running {
			h.kill(name)
		}
		h.key.Release()
	})
	return h
}

func (h *host) stateDir() string { return filepath.Join(h.dir, "state") }
func (h *host) runDir() string   { return filepath.Join(h.dir, "run") }

// records are the state directory's.
func (h *host) records() state.Records {
	return state.Records{Dir: filepath.Join(h.stateDir(), "devices")}
}

// launch starts a server, and doesn't wait for it.
func (h *host) launch(name string) *process {
	life, term := context.WithCancel(ctx)
	p := &process{term: term, force: make(chan struct{}), depart: make(chan struct{}),
		killed: make(chan struct{}), up: make(chan struct{}), ended: make(chan struct{})}
	p.k = &fakeServer{h.k, make(chan struct{})}
	h.mu.Lock()
	h.running[name] = p
	h.mu.Unlock()
	go func() {
		p.exit, p.err = p.run(life, h, name)
		close(p.ended)
	}()
	return p
}

// run is serve, but that it can be killed.
func (p *process) run(life context.Context, h *host, name string) (int, error) {
	cfg := Config{Name: name, RunDir: h.runDir(), StateDir: h.stateDir(), Version: "test", Log: h.log, Force: p.force, Depart: p.depart}
	s, err := start(life, cfg, p.k, h.times)
	p.s = s
	close(p.up)
	if err != nil {
		return 1, err
	}
	defer s.close()
	exit := make(chan int, 1)
	go func() { s.begin(); exit <- s.live(life) }()
	select {
	case code := <-exit:
		return code, nil
	case <-p.killed:
		s.front.http.Close() // whoever waits for an answer gets none
		return -1, nil
	}
}

// up is the server of a device, which is launched if there is none.
func (h *host) up(name string) *process {
	h.t.Helper()
	h.mu.Lock()
	p := h.running[name]
	h.mu.Unlock()
	if p == nil {
		p = h.launch(name)
	}
	<-p.up
	if p.s == nil {
		<-p.ended
		h.t.Errorf("the server of %s didn't start: %v", name, p.err)
	}
	return p
}

// server is the one of a device.
func (h *host) server(name string) *Server {
	h.t.Helper()
	return h.up(name).s
}

// exits is a server's exit code, once it has ended.
func (h *host) exits(name string) int {
	h.t.Helper()
	h.mu.Lock()
	p := h.running[name]
	h.mu.Unlock()
	if p == nil {
		h.t.Fatalf("no server of %s runs", name)
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		h.t.Fatalf("the server of %s doesn't end", name)
	}
	h.mu.Lock()
	if h.running[name] == p {
		delete(h.running, name)
	}
	h.mu.Unlock()
	return p.exit
}

// kill ends a server as kill -9 would, as far as others can see. The driver keeps its device
// waiting.
func (h *host) kill(name string) { h.die(name, true) }

// lose kills a server whose device can't be recovered.
func (h *host) lose(name string) { h.die(name, false) }

func (h *host) die(name string, recoverable bool) {
	h.t.Helper()
	h.mu.Lock()
	p := h.running[name]
	h.mu.Unlock()
	if p == nil {
		return
	}
	h.k.set(func() { close(p.k.dead) })
	h.k.gone(name, recoverable)
	close(p.killed)
	h.exits(name)
}

// restart loses a device, and launches its next server.
func (h *host) restart(name string) {
	h.t.Helper()
	h.lose(name)
	h.up(name)
}

// term is SIGTERM to a server.
func (h *host) term(name string) *process {
	h.t.Helper()
	p := h.up(name)
	p.term()
	return p
}

// stop has a server end in order.
func (h *host) stop(name string) {
	h.t.Helper()
	h.term(name)
	if code := h.exits(name); code != ExitOver {
		h.t.Errorf("%s: exit code %d after a stop in order", name, code)
	}
}

// image makes a file that stands for an image.
func (h *host) image(name string) ploop.ImageRef {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if _, err := os.Stat(path); err != nil {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	return ploop.ImageRef{Path: path}
}

// spec is a device on images of those names, base first.
func (h *host) spec(name string, images ...string) api.Spec {
	s := api.Spec{Name: name}
	for _, i := range images {
		s.Images = append(s.Images, h.image(i))
	}
	return s
}

func (h *host) create(name string, images ...string) *api.Device {
	h.t.Helper()
	dev, err := h.Create(ctx, h.spec(name, images...))
	if err != nil {
		h.t.Fatalf("create %s: %v", name, err)
	}
	return dev
}

// persistent creates a device that is to come back.
func (h *host) persistent(name string) {
	h.t.Helper()
	spec := h.spec(name, name)
	spec.Persist = true
	dev, err := h.Create(ctx, spec)
	if err != nil || !dev.Persist {
		h.t.Fatalf("%v, %v", dev, err)
	}
}

// SetKey is the manager's.
func (h *host) SetKey(on bool) {
	h.t.Helper()
	if err := h.key.Set(on); err != nil {
		h.t.Fatal(err)
	}
}

// arm turns both fuses on.
func (h *host) arm(name string) {
	h.t.Helper()
	h.SetKey(true)
	if _, err := h.Attach(ctx, name, "test"); err != nil {
		h.t.Fatal(err)
	}
	// Servers hear of the key by inotify.
	waitFor(h.t, "the key", func() bool { dev, err := h.Device(ctx, name); return err == nil && dev.Standby.Value == "off" })
}

// state is a device's, "": there is none.
func (h *host) state(name string) string {
	h.t.Helper()
	dev, err := h.Device(ctx, name)
	if api.CodeOf(err) == api.CodeNotFound {
		return ""
	}
	if err != nil {
		h.t.Fatalf("state of %s: %v", name, err)
	}
	return dev.State
}

// eventually waits until a device is in a state.
func (h *host) eventually(name, state string) api.Device {
	h.t.Helper()
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		dev, err := h.Device(ctx, name)
		if err == nil && dev.State == state {
			return *dev
		}
		if time.Since(begin) > patience {
			h.t.Fatalf("%s is not %s: %+v, %v", name, state, dev, err)
		}
	}
}

// recorded are the names in the state directory.
func (h *host) recorded() []string {
	h.t.Helper()
	recs, _, err := h.records().Read()
	if err != nil {
		h.t.Fatal(err)
	}
	names := []string{}
	for _, r := range recs {
		names = append(names, r.Spec.Name)
	}
	return names
}

func (h *host) record(name string) *state.Record {
	h.t.Helper()
	rec, err := state.ReadRecord(h.records().Path(name))
	if err != nil {
		h.t.Fatal(err)
	}
	return rec
}

// unwritable is a state directory that nothing can be written to, until the end of do: as good
// as read-only, for root too.
func (h *host) unwritable(do func()) {
	h.t.Helper()
	dir := h.records().Dir
	aside := dir + ".aside"
	if err := errors.Join(os.Rename(dir, aside), os.WriteFile(dir, nil, 0o600)); err != nil {
		h.t.Fatal(err)
	}
	do()
	if err := errors.Join(os.Remove(dir), os.Rename(aside, dir)); err != nil {
		h.t.Fatal(err)
	}
}

// patience bounds every wait of a test.
const patience = 30 * time.Second

func waitFor(t *testing.T, what string, so func() bool) {
	t.Helper()
	for begin := time.Now(); !so(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > patience {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// wantCode fails unless err has the code.
func wantCode(t *testing.T, err error, code api.Code) *api.Error {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got error %v (%v), want code %s", err, api.CodeOf(err), code)
	}
	return e
}
