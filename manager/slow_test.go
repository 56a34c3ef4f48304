package manager

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"holdfast/api"
	"holdfast/state"
)

// still is a peer that has answered, and that nobody looks at but the test.
func (f *fixture) still(name string) *peer {
	f.t.Helper()
	p := newPeer(f.m.peers, name, nil)
	pid, _ := state.Probe(f.run(), name)
	before := p.observation()
	p.newServer(ctx, pid, &before)
	waitFor(f.t, "an answer", func() bool { p.ask(ctx); return p.state() == api.ServerUp })
	return p
}

// TestSlowLook: what was seen of a server before it answered, and is taken in after that, undoes
// nothing of what it has said.
func TestSlowLook(t *testing.T) {
	f := newFixture(t)
	dev := f.create("v", "i")
	p := f.still("v")
	for what, observe := range map[string]func(before *observation){
		"there was none":           func(before *observation) { p.absent(ctx, before) },
		"it was another":           func(before *observation) { p.newServer(ctx, before.pid+1, before) },
		"it could not be told":     func(before *observation) { p.newServer(ctx, 0, before) },
		"a question took too long": func(before *observation) { p.quiet(before) },
	} {
		before := p.observation()
		waitFor(t, "an answer", func() bool { p.ask(ctx); return p.observation().heard > before.heard })
		observe(&before)
		if o := p.observation(); o.state != api.ServerUp || o.pid != dev.Server.PID || o.report == nil {
			t.Errorf("%s: it is %s, process %d, with report %v", what, o.state, o.pid, o.report)
		}
	}
	before := p.observation()
	if p.quiet(&before); p.state() != api.ServerSilent {
		t.Errorf("one that has not answered is %s", p.state())
	}
}

// TestNextServer: between two servers there is no moment in which a device is not known, nor its
// number.
func TestNextServer(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	p := f.still("v")
	known := func() {
		t.Helper()
		o := p.observation()
		if id, ok := o.number(); p.device() == nil || id != 0 || !ok {
			t.Errorf("device %v, number %d, %v", p.device(), id, ok)
		}
	}
	var asked atomic.Int64
	f.h.set(func() { f.h.hasAsked = func() { asked.Add(1); known() } })
	before := p.observation()
	p.newServer(ctx, before.pid+1, &before)
	known()
	if o := p.observation(); o.pid != before.pid+1 || o.report != nil || asked.Load() == 0 {
		t.Errorf("process %d, report %v, the driver was asked %d times", o.pid, o.report, asked.Load())
	}
	before = p.observation()
	p.absent(ctx, &before)
	known()
}

// TestDriverTooSlow: a driver that doesn't say in time what it has is no reason to take a device
// for lost. Its server is started, and finds out.
func TestDriverTooSlow(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.stop()
	f.h.set(func() {
		f.h.wanted["v"] = false
		f.h.hasErr = errors.New("not in time")
		f.h.startErr = errors.New("nor this")
	})
	f.h.server("v").kill()
	f.start()
	dev, err := f.c.Device(ctx, "v")
	if err != nil || dev.State != api.StateRecovering || dev.Server.Problem == "" {
		t.Errorf("%+v, server %+v, %v", dev, dev.Server, err)
	}
	p := newPeer(f.m.peers, "v", nil)
	before := p.observation()
	p.absent(ctx, &before)
	if o := p.observation(); !o.inDriver || o.unsure == "" {
		t.Errorf("of one that nothing was known of: %+v", o)
	}
	f.h.set(func() { f.h.startErr = nil })
	waitFor(t, "its server", func() bool { return f.h.called("start v") > 0 })
	f.h.set(func() { f.h.hasErr = nil })
	f.eventually("v", api.StateLive)
	waitFor(t, "nothing to be wrong", func() bool {
		dev, err := f.c.Device(ctx, "v")
		return err == nil && dev.Server.State == api.ServerUp && dev.Server.Problem == ""
	})
}

// TestAdoptUnknownProcess: a server that has its lock, and has not recorded yet which process it
// is, is adopted all the same.
func TestAdoptUnknownProcess(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.stop()
	f.h.set(func() { f.h.calls = map[string]int{} })
	if err := os.WriteFile(state.Run(f.run()).Device("v").Lock(), []byte("?         \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if pid, held := state.Probe(f.run(), "v"); pid != 0 || !held {
		t.Fatalf("%d, %v", pid, held)
	}
	f.start()
	waitFor(t, "its adoption", func() bool { return f.h.called("adopt v") == 1 })
	f.eventually("v", api.StateLive)
	if dev, err := f.c.Device(ctx, "v"); err != nil || dev.Server.PID != f.h.server("v").pid {
		t.Errorf("%+v, %v", dev, err)
	}
}

// TestServerHasEnded: who asks for a device whose server has just ended is told so, and not what the
// server said last.
func TestServerHasEnded(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	p := f.still("v")
	f.h.set(func() { f.h.wanted["v"] = false })
	f.h.server("v").kill()
	if dev := p.current(ctx); dev == nil || dev.State != api.StateRecovering {
		t.Errorf("%+v", dev)
	}
	if got := p.state(); got != api.ServerNone {
		t.Errorf("its server is %s", got)
	}
}
