package manager

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/state"
)

// binary is a program that says a version, or fails.
func (f *fixture) binary(name, script string) string {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if err := errors.Join(os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o600), os.Chmod(path, 0o755)); err != nil {
		f.t.Fatal(err)
	}
	return path
}

func TestRoll(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{"a", "b", "c"} {
		f.create(name, name)
	}
	second := f.binary("second", "echo second")
	b := f.h.server("b")
	b.set(func() { b.leave = api.Errorf(api.CodeBusy, "requests hang") })
	res, err := f.c.Upgrade(ctx, api.UpgradeRequest{Binary: second, Parallel: 2})
	if err != nil || res.Devices != 2 || len(res.Servers) != 3 || res.Waiting != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	for _, s := range res.Servers {
		want := api.UpgradedServer{Device: s.Device, Result: api.UpgradeDone, Was: "first", Build: "second", PauseMS: s.PauseMS}
		if s.Device == "b" {
			want.Result, want.Build, want.Error = api.UpgradeKept, "first", "requests hang"
		}
		if s != want {
			t.Errorf("%+v, want %+v", s, want)
		}
	}
	for name, build := range map[string]string{"a": "second", "b": "first", "c": "second"} {
		if dev, err := f.c.Device(ctx, name); err != nil || dev.State != api.StateLive || dev.Server.Build != build {
			t.Errorf("%+v, %v", dev, err)
		}
		if f.h.binaries[name] == second == (name == "b") {
			t.Errorf("%s is started as %q", name, f.h.binaries[name])
		}
	}
}

// TestRollBroken: a program that does not serve ends the roll, with the device served by the one
// before.
func TestRollBroken(t *testing.T) {
	f := newFixture(t)
	f.stop()
	f.pace.serve = time.Hour // it ends at once, and nobody waits for it
	f.start()
	f.create("a", "a")
	f.create("b", "b")
	broken := f.binary("broken", "echo broken")
	f.h.set(func() { f.h.broken[broken] = true })
	b := f.h.server("b")
	res, err := f.c.Upgrade(ctx, api.UpgradeRequest{Binary: broken})
	if err != nil || res.Devices != 0 || len(res.Servers) != 2 {
		t.Fatalf("%+v, %v", res, err)
	}
	if s := res.Servers[0]; s.Result != api.UpgradeUndone || s.Error == "" || s.Was != "first" {
		t.Errorf("%+v", s)
	}
	if s := res.Servers[1]; s.Result != api.UpgradeSkipped || f.h.server("b") != b {
		t.Errorf("%+v", s)
	}
	if s := f.states(); s["a"] != api.StateLive || s["b"] != api.StateLive {
		t.Errorf("%v", s)
	}
	if !slices.Contains(f.events(""), api.EventUpgradeFailed) {
		t.Error("no event")
	}
	// The old one is where it was, or a copy of it.
	exe, _ := os.Executable()
	if got := f.h.binaries["a"]; got != exe {
		t.Errorf("the old program is %q", got)
	}
}

// TestRollRefused: what can be seen before changes nothing.
func TestRollRefused(t *testing.T) {
	f := newFixture(t)
	f.create("a", "a")
	a := f.h.server("a")
	for _, r := range []api.UpgradeRequest{
		{Binary: "relative"}, {Binary: f.dir + "/none"}, {Binary: f.binary("fails", "exit 3")}, {Binary: f.binary("mute", "")}, {Parallel: -1},
	} {
		_, err := f.c.Upgrade(ctx, r)
		if e := wantCode(t, err, api.CodeInvalid); strings.Contains(e.Message, "\n") {
			t.Errorf("%q", e.Message)
		}
	}
	_, err := f.c.Upgrade(ctx, api.UpgradeRequest{Devices: []string{"none"}})
	wantCode(t, err, api.CodeNotFound)
	if f.h.server("a") != a {
		t.Error("another server")
	}
	// One that doesn't answer stays, too.
	a.silence()
	f.eventually("a", api.StateSilent)
	f.ahead.Store(int64(time.Hour)) // patience with it is at an end
	res, err := f.c.Upgrade(ctx, api.UpgradeRequest{Devices: []string{"ublkb0"}})
	if err != nil || len(res.Servers) != 1 || res.Servers[0].Result != api.UpgradeKept || res.Servers[0].Error == "" {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestKeepBinary: a program that is no longer where it was started from is kept as a copy.
func TestKeepBinary(t *testing.T) {
	f := newFixture(t)
	sleep := filepath.Join(f.dir, "program")
	self, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(sleep, self, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(sleep, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := os.StartProcess(sleep, []string{"sleep", "60"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { p.Kill(); p.Wait() }()
	if path, err := (&roll{m: f.m}).keepBinary(p.Pid, "v"); err != nil || path != sleep {
		t.Errorf("%q, %v", path, err)
	}
	if err := os.Remove(sleep); err != nil {
		t.Fatal(err)
	}
	path, err := (&roll{m: f.m}).keepBinary(p.Pid, "v")
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(path); err != nil || string(kept) != string(self) {
		t.Errorf("%d bytes, %v", len(kept), err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi, err)
	}
}

// TestStop: all servers end in order, and those that are in use say so.
func TestStop(t *testing.T) {
	f := newFixture(t)
	f.create("a", "a")
	f.create("b", "b")
	spec := f.spec("p", "p")
	spec.Persist = true
	if _, err := f.c.Create(ctx, spec); err != nil {
		t.Fatal(err)
	}
	f.h.set(func() { f.h.inUse["b"] = []api.User{{Kind: "swap", Device: "ublkb1"}} })
	waitFor(t, "all to end but the one in use", func() bool {
		res, err := f.c.StopServers(ctx, api.StopRequest{Timeout: api.Duration(200 * time.Millisecond)})
		if err != nil || !slices.Contains(res.Left, "b") {
			t.Fatalf("%+v, %v", res, err)
		}
		return len(res.Left) == 1
	})
	f.eventually("p", api.StateEnded)
	if info := f.m.Info(); !info.Stopping {
		t.Errorf("%+v", info)
	}
	_, err := f.c.Create(ctx, f.spec("new", "n"))
	wantCode(t, err, api.CodeStopping)
	f.h.set(func() { f.h.inUse["b"] = nil })
	if res, err := f.c.StopServers(ctx, api.StopRequest{}); err != nil || len(res.Left) != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	waitFor(t, "only the persistent one to be left", func() bool { s := f.states(); return len(s) == 1 && s["p"] == api.StateEnded })
	// A manager of servers of its own creates it again, one of a service manager's leaves that to
	// it.
	f.h.forks = false
	f.restart()
	f.eventually("p", api.StateEnded)
	f.h.forks = true
	f.restart()
	f.eventually("p", api.StateLive)
}

// TestOrphans: a disk of ours that has no record is told of, and can be given up.
func TestOrphans(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.h.set(func() { f.h.disks[7] = state.Disk{ID: 7, Tag: state.NewTag(f.stateDir(), "lost", f.m.started)} })
	waitFor(t, "the problem", func() bool {
		snap, err := f.c.Brief(ctx)
		return err == nil && len(snap.Problems) == 1 && snap.Problems[0].File == "/dev/ublkb7"
	})
	wantCode(t, f.c.Remove(ctx, "ublkb7", false), api.CodeBusy)
	if err := f.c.Remove(ctx, "ublkb7", true); err != nil {
		t.Fatal(err)
	}
	wantCode(t, f.c.Remove(ctx, "ublkb7", true), api.CodeNotFound)
	if s := f.states(); len(s) != 1 || s["v"] != api.StateLive || len(f.h.disks) != 1 {
		t.Errorf("%v", s)
	}
}
