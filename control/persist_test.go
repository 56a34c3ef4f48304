package control

import (
	"errors"
	"os"
	"testing"

	"holdfast/api"
	"holdfast/state"
)

// persistent creates a device that is to come back.
func (f *fixture) persistent(name string) {
	f.t.Helper()
	spec := f.spec(name, name)
	spec.Persist = true
	dev, err := f.c.Create(ctx, spec)
	if err != nil || !dev.Persist {
		f.t.Fatalf("%v, %v", dev, err)
	}
}

// stop ends the daemon in order.
func (f *fixture) stop() {
	f.t.Helper()
	_, done := f.shutdown()
	if err := <-done; err != nil {
		f.t.Fatal(err)
	}
	f.crash()
}

// comesBack waits until the device is live without anybody's doing.
func (f *fixture) comesBack(name string) {
	f.t.Helper()
	waitFor(f.t, name+" live again", func() bool { return f.states()[name] == "live" })
}

func TestPersist(t *testing.T) {
	f := newFixture(t)
	f.persistent("a")
	f.create("b", "b")
	if _, err := f.c.Attach(ctx, "a", "me"); err != nil {
		t.Fatal(err)
	}
	f.stop()
	if got := f.recorded(); len(got) != 1 || got[0] != "a" {
		t.Fatalf("recorded: %q", got)
	}
	// It was closed cleanly: its image may be another one since, and a mark on it is not ours.
	path := f.image("a").Path
	if err := errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	f.start()
	<-f.d.Restored()
	f.comesBack("a")
	if f.k.taken["a"] {
		t.Error("marks on an image that had been closed were taken for ours")
	}
	dev, err := f.c.Device(ctx, "a")
	if err != nil || len(dev.Standby.Consumers) != 1 || !dev.Persist || dev.Problem != "" {
		t.Errorf("%+v, %v", dev, err)
	}

	// The machine goes down with it: the mark is ours then.
	f.crash()
	rec, err := state.ReadRecord(state.Records{Dir: f.stateDir() + "/devices"}.Path("a"))
	if err != nil || rec.Closed {
		t.Fatalf("%+v, %v", rec, err)
	}
	rec.BootID = "another"
	if err := (state.Records{Dir: f.stateDir() + "/devices"}).Save(rec); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(f.runDir()); err != nil {
		t.Fatal(err)
	}
	f.start()
	f.comesBack("a")
	if !f.k.taken["a"] {
		t.Error("the mark of the daemon before was not taken over")
	}

	if err := f.c.Remove(ctx, "a", false); err != nil {
		t.Fatal(err)
	}
	f.stop()
	f.start()
	<-f.d.Restored()
	if got := f.states(); len(got) != 0 {
		t.Errorf("a removed device is back: %v", got)
	}
}

func TestPersistWaits(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{"a", "b", "c"} {
		f.persistent(name)
	}
	f.stop()
	a := f.image("a").Path
	if err := os.Rename(a, a+".away"); err != nil {
		t.Fatal(err)
	}
	f.k.mu.Lock()
	f.k.openErr = errors.New("not today")
	f.k.mu.Unlock()
	f.start()
	<-f.d.Restored() // is about the first try
	for _, name := range []string{"a", "b", "c"} {
		dev, err := f.c.Device(ctx, name)
		if err != nil || dev.State != api.StateWaiting || dev.Problem == "" || dev.Advice == "" {
			t.Errorf("%+v, %v", dev, err)
		}
	}
	if p := f.d.Pulse(); p.Other != 3 || p.Live != 0 {
		t.Errorf("%+v", p)
	}
	// It can be had by hand, and given up.
	if err := f.c.Remove(ctx, "c", false); err != nil {
		t.Fatal(err)
	}
	f.k.mu.Lock()
	f.k.openErr = nil
	f.k.mu.Unlock()
	f.comesBack("b")
	if state := f.states()["a"]; state != api.StateWaiting {
		t.Errorf("without its image: %s", state)
	}
	if err := os.Rename(a+".away", a); err != nil {
		t.Fatal(err)
	}
	f.d.mounts.ring()
	f.comesBack("a")
	if _, there := f.states()["c"]; there {
		t.Error("what was given up is back")
	}
	// A daemon that ends while it waits keeps what it has.
	f.stop()
	f.k.mu.Lock()
	f.k.openErr = errors.New("not today")
	f.k.mu.Unlock()
	f.start()
	<-f.d.Restored()
	f.stop()
	if got := f.recorded(); len(got) != 2 {
		t.Errorf("recorded: %q", got)
	}
	f.k.mu.Lock()
	f.k.openErr = nil
	f.k.mu.Unlock()
	f.start()
	f.comesBack("a")
	f.comesBack("b")
}
