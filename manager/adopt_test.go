package manager

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/state"
)

// TestCreateToRemove is a device's, from its creation to its removal.
func TestCreateToRemove(t *testing.T) {
	f := newFixture(t)
	dev := f.create("v", "i")
	if dev.State != api.StateLive || dev.Path == "" || dev.Server == nil || dev.Server.State != api.ServerUp || dev.Server.PID != f.h.server("v").pid || dev.Server.Build != "first" {
		t.Errorf("%+v, server %+v", dev, dev.Server)
	}
	if f.h.enabled["v"] || len(f.h.mounts["v"]) != 1 {
		t.Errorf("enabled: %v, mounts %v", f.h.enabled["v"], f.h.mounts["v"])
	}
	_, err := f.c.Create(ctx, f.spec("v", "j"))
	wantCode(t, err, api.CodeExists)
	_, err = f.c.Create(ctx, f.spec("w", "i"))
	if e := wantCode(t, err, api.CodeConflict); !strings.Contains(e.Message, `belongs to device "v"`) {
		t.Errorf("%q", e.Message)
	}
	spec := f.spec("w", "j")
	spec.Images[0].Path += "-none"
	_, err = f.c.Create(ctx, spec)
	wantCode(t, err, api.CodeImage)
	waitFor(t, "nothing to be left of w", func() bool { return f.m.peers.get("w") == nil })
	spec = f.spec("p", "k")
	spec.Persist = true
	if _, err := f.c.Create(ctx, spec); err != nil || !f.h.enabled["p"] {
		t.Errorf("%v, enabled: %v", err, f.h.enabled["p"])
	}
	f.h.set(func() { f.h.inUse["v"] = []api.User{{Kind: "mount", Device: "ublkb0", Name: "/mnt"}} })
	if dev, err := f.c.Device(ctx, "v"); err != nil || len(dev.Users) != 1 {
		t.Errorf("%+v, %v", dev, err)
	}
	if e := wantCode(t, f.c.Remove(ctx, "v", false), api.CodeBusy); len(e.Users) != 1 {
		t.Errorf("%+v", e)
	}
	if err := f.c.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	if s := f.states(); len(s) != 1 {
		t.Errorf("left: %v", s)
	}
	f.create("v", "i") // at once
	for range 5 {
		if err := f.c.Remove(ctx, "v", true); err != nil {
			t.Fatal(err)
		}
		f.create("v", "i")
	}
	if err := f.c.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	dir := string(state.Run(f.run()).Device("v"))
	waitFor(t, "nothing to be left of v", func() bool { _, err := os.Lstat(dir); return os.IsNotExist(err) && f.m.peers.get("v") == nil })
	if f.h.called("forget v") == 0 {
		t.Error("the launcher still knows it")
	}
}

// TestManagerRestart: the next manager adopts all servers, and they notice nothing.
func TestManagerRestart(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.create("w", "j")
	v := f.h.server("v")
	f.stop()
	f.h.set(func() { f.h.calls = map[string]int{} })
	f.start()
	for _, name := range []string{"v", "w"} {
		f.eventually(name, api.StateLive)
		waitFor(t, "its adoption", func() bool { return f.h.called("adopt "+name) == 1 })
		if n := f.h.called("start " + name); n != 0 {
			t.Errorf("%s was started %d times", name, n)
		}
	}
	if f.h.server("v") != v {
		t.Error("another server")
	}
	// One that dies while there is no manager, and isn't started again.
	f.stop()
	f.h.set(func() { f.h.wanted["v"] = false })
	v.kill()
	f.start()
	f.eventually("v", api.StateLive)
	if f.h.server("v") == v {
		t.Error("the same server")
	}
	// One that doesn't answer: the other one is there at once, and it is shown.
	v = f.h.server("v")
	v.silence()
	f.restart()
	f.eventually("w", api.StateLive)
	f.eventually("v", api.StateSilent)
	if dev, err := f.c.BriefDevice(ctx, "v"); err != nil || dev.Images[0].Path != f.image("i").Path || dev.Path == "" {
		t.Errorf("%+v, %v", dev, err)
	}
	v.answer()
	f.eventually("v", api.StateLive)
}

// TestDeath: a server that dies is followed by another, and what is between is shown.
func TestDeath(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.h.set(func() { f.h.wanted["v"] = false })
	f.h.server("v").kill()
	f.eventually("v", api.StateRecovering)
	dev, err := f.c.BriefDevice(ctx, "v")
	if err != nil || dev.Server.State != api.ServerNone || dev.Path == "" || dev.Problem == "" {
		t.Errorf("%+v, %v", dev, err)
	}
	if err := f.h.Start(ctx, "v"); err != nil {
		t.Fatal(err)
	}
	f.eventually("v", api.StateLive)
	pid := f.h.server("v").pid
	f.h.server("v").kill() // and is started again
	waitFor(t, "another one", func() bool {
		dev, err := f.c.BriefDevice(ctx, "v")
		return err == nil && dev.State == api.StateLive && dev.Server.PID != pid
	})
	// With its device: it is lost, and served again by a command.
	f.h.set(func() { f.h.wanted["v"] = false; f.h.disks = map[int]state.Disk{} })
	f.h.server("v").kill()
	f.eventually("v", api.StateLost)
	f.create("v", "i")
	f.eventually("v", api.StateLive)
}

// TestForeignFiles: what else may be in the directories is told of where it matters, and keeps
// nobody from anything.
func TestForeignFiles(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.stop()
	devices := filepath.Join(f.run(), "devices")
	for path, dir := range map[string]bool{"file": false, ".hidden": true, "a b": true, "stale": true, "odd": true} {
		var err error
		if path = filepath.Join(devices, path); dir {
			err = os.Mkdir(path, 0o700)
		} else {
			err = os.WriteFile(path, nil, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range map[string]string{
		filepath.Join(devices, "stale/lock"):                 "1\n",
		filepath.Join(f.stateDir(), "devices/bad.json"):      "{",
		filepath.Join(f.run(), managerDir, "events.json"):    "{",
		filepath.Join(f.run(), managerDir, "hooks.json"):     "[]",
		filepath.Join(f.run(), "key.json"):                   "x",
		filepath.Join(f.stateDir(), "devices/.v.json123456"): "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(devices, "odd/lock"), 0o700); err != nil {
		t.Fatal(err)
	}
	f.start()
	f.eventually("v", api.StateLive)
	snap, err := f.c.Brief(ctx)
	if err != nil || len(snap.Devices) != 1 || len(snap.Problems) != 2 {
		t.Fatalf("%+v, %v", snap, err)
	}
	if p := snap.Problems; p[0].Device != "bad" || p[1].Device != "odd" {
		t.Errorf("%+v", p)
	}
	// What is damaged is not this process' to change.
	if _, err := os.Stat(filepath.Join(f.stateDir(), "devices/bad.json")); err != nil {
		t.Error(err)
	}
	f.create("stale", "j")
}

// TestAnswersOnlyOnceServersAreSeen: a manager has seen the servers that there are before anybody
// can ask it.
func TestAnswersOnlyOnceServersAreSeen(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.create("w", "j")
	f.stop()
	v := f.h.server("v")
	v.silence()
	came, asked := v.requests(), make(chan bool)
	go func() { // it needs a moment
		defer v.answer()
		for v.requests() == came {
			select {
			case <-asked:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	f.start()
	for _, name := range []string{"v", "w"} {
		if is := f.m.peers.get(name).state(); is != api.ServerUp {
			t.Errorf("the server of %s is %s when the manager has started", name, is)
		}
	}
	close(asked)
}
