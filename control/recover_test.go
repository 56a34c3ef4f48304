package control

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/state"
)

// die is a crash after which the driver keeps the devices.
func (f *fixture) die() {
	f.t.Helper()
	f.k.mu.Lock()
	for _, d := range f.k.live {
		f.k.waiting[d.id] = true
	}
	clear(f.k.live)
	f.k.mu.Unlock()
	f.crash()
}

// eventually waits until a device is in a state.
func (f *fixture) eventually(name, state string) api.Device {
	f.t.Helper()
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		dev, err := f.c.Device(ctx, name)
		if err == nil && dev.State == state {
			return *dev
		}
		if time.Since(begin) > 10*time.Second {
			f.t.Fatalf("%s is not %s: %+v, %v", name, state, dev, err)
		}
	}
}

func (f *fixture) setOpenErr(err error) {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	f.k.openErr = err
}

// A daemon that died is followed by one that has all it had: key, leases, standby, number.
func TestRecovery(t *testing.T) {
	f := newFixture(t)
	was := f.create("v", "base", "top")
	f.create("w", "other")
	if _, err := f.c.SetKey(ctx, true); err != nil {
		t.Fatal(err)
	}
	if _, err := f.c.Attach(ctx, "v", "me"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.c.SetStandby(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	since := f.eventually("v", "standby").Standby.Since
	f.k.live["v"].event(api.Event{Device: "v", Kind: api.EventStandby}) // the fake's machine tells nobody
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		if rec, err := state.ReadRecord(f.d.records.Path("v")); err == nil && rec.Standby != nil {
			break
		} else if time.Since(begin) > 10*time.Second {
			t.Fatalf("the standby is not noted: %+v, %v", rec, err)
		}
	}
	for range 3 {
		f.die()
		f.start()
		now := f.eventually("v", "standby")
		if now.ID != was.ID || now.Standby.Value != "on" || len(now.Standby.Consumers) != 1 || now.Standby.Since == nil || !now.Standby.Since.Equal(*since) {
			t.Errorf("after the recovery: %+v, was %+v since %v", now, was, since)
		}
		f.eventually("w", "live")
	}
	if len(f.k.deleted) != 0 {
		t.Errorf("deleted: %v", f.k.deleted)
	}
}

// What can't be recovered keeps nobody from it, says why, and is tried until it can.
func TestRecoveryRefused(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.create("w", "j")
	if _, err := f.c.SetKey(ctx, true); err != nil {
		t.Fatal(err)
	}
	if _, err := f.c.Attach(ctx, "v", "me"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.c.SetStandby(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	f.d.noteStandby(f.d.slots["v"], f.d.slots["v"].dev)
	f.die()
	f.setOpenErr(&ploop.FormatError{File: "j", Offset: -1, What: "lock", Class: ploop.ErrLocked, Found: "another process has it"})
	// Its tree tells what it would, and takes no orders.
	reads := func(path, want string) {
		t.Helper()
		if a, err := f.d.Attr(path); err != nil || a.Value != want {
			t.Errorf("%s: %+v, %v, want %q", path, a, err, want)
		}
	}
	aside := filepath.Join(f.dir, "aside")
	if err := os.Rename(f.image("i").Path, aside); err != nil {
		t.Fatal(err)
	}
	f.start()
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		v, w := f.eventually("v", api.StateRecovering), f.eventually("w", api.StateRecovering)
		if strings.Contains(v.Problem, "no such file") && strings.Contains(w.Problem, "another process") && v.Advice != "" && v.ID == 0 {
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("v: %q, w: %q", v.Problem, w.Problem)
		}
	}
	reads("block/v/state", api.StateRecovering)
	reads("block/v/queue/standby", "on")
	reads("block/w/queue/standby", "not supported")
	if err := f.d.SetAttr("block/v/queue/standby", "off"); err == nil {
		t.Error("an order was taken")
	}
	if _, err := f.c.Recover(ctx, "w", false); api.CodeOf(err) != api.CodeImage {
		t.Errorf("recover: %v", err)
	}
	if err := f.c.Remove(ctx, "w", false); api.CodeOf(err) != api.CodeBusy {
		t.Errorf("remove: %v", err)
	}
	if _, err := f.c.Create(ctx, f.spec("w", "j")); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("create: %v", err)
	}
	f.setOpenErr(nil)
	f.eventually("w", "live")
	f.eventually("v", api.StateRecovering)
	if err := os.Rename(aside, f.image("moved").Path); err != nil {
		t.Fatal(err)
	}
	if _, err := f.c.Replace(ctx, "v", api.ReplaceRequest{Image: f.image("moved")}); err != nil {
		t.Fatal(err)
	}
	reads("block/v/queue/standby", "off")
	if dev := f.eventually("v", "live"); dev.Images[0].Path != f.image("moved").Path {
		t.Errorf("%+v", dev.Images)
	}
	for _, name := range []string{"v", "w"} {
		if _, err := f.c.Recover(ctx, name, false); api.CodeOf(err) != api.CodeConflict {
			t.Errorf("recover of a live device: %v", err)
		}
	}
}

// The recover policy fail lets I/O fail after its time, and is no end.
func TestRecoverPolicyFail(t *testing.T) {
	f := newFixture(t)
	spec := f.spec("v", "i")
	spec.RecoverPolicy, spec.RecoverTimeout = api.RecoverFail, api.Duration(time.Millisecond)
	if _, err := f.c.Create(ctx, spec); err != nil {
		t.Fatal(err)
	}
	f.create("w", "j")
	f.die()
	f.setOpenErr(errors.New("not today"))
	f.start()
	f.eventually("v", api.StateUnrecovered)
	f.eventually("w", api.StateRecovering)
	f.setOpenErr(nil)
	f.eventually("v", "live")
	f.eventually("w", "live")
	if len(f.k.failed) == 0 || f.k.failed[0] != 0 {
		t.Errorf("failed: %v", f.k.failed)
	}
}

// A record that is damaged, or lost with its directory, is made up for by its copy.
func TestRecoveryFromTheCopy(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.create("w", "j")
	f.die()
	if err := os.Truncate(f.d0().Path("v"), 20); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(f.d0().Path("w")); err != nil {
		t.Fatal(err)
	}
	f.start()
	f.eventually("v", "live")
	f.eventually("w", "live")
	snap, err := f.c.Snapshot(ctx)
	if err != nil || len(snap.Problems) != 1 || !strings.Contains(snap.Problems[0].Advice, "nothing is lost") {
		t.Errorf("%+v, %v", snap.Problems, err)
	}
	for _, name := range []string{"v", "w"} {
		if _, err := state.ReadRecord(f.d.records.Path(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// d0 is the state directory's records without a daemon.
func (f *fixture) d0() state.Records {
	return state.Records{Dir: filepath.Join(f.stateDir(), "devices")}
}

// A device of ours without a record stays until it is given up by name; what never was
// started, or can't be recovered, is cleared away.
func TestOrphans(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.create("w", "j")
	f.die()
	r := state.Records{Dir: f.d0().Dir, Run: f.runDir()}
	for _, path := range []string{r.Path("v"), r.CopyPath("v")} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	f.k.mu.Lock()
	delete(f.k.waiting, 1) // w can't be recovered
	f.k.dead = []int{1, 7}
	f.k.mu.Unlock()
	f.start()
	f.eventually("w", api.StateLost)
	f.k.mu.Lock()
	if !f.k.waiting[0] || len(f.k.deleted) != 2 {
		t.Errorf("waiting %v, deleted %v", f.k.waiting, f.k.deleted)
	}
	f.k.mu.Unlock()
	if err := f.c.Remove(ctx, "ublkb0", false); api.CodeOf(err) != api.CodeBusy {
		t.Errorf("remove: %v", err)
	}
	if err := f.c.Remove(ctx, "ublkb0", true); err != nil {
		t.Errorf("remove by force: %v", err)
	}
	if err := f.c.Remove(ctx, "ublkb0", true); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("and again: %v", err)
	}
}

// A device that can't be recovered can be given up.
func TestGivenUp(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.die()
	f.setOpenErr(errors.New("not today"))
	f.start()
	f.eventually("v", api.StateRecovering)
	if err := f.c.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	if _, err := f.c.Device(ctx, "v"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("%v", err)
	}
}

// A state directory that can't be written to is told of, and loses no device.
func TestUnwritableState(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	if _, err := f.c.SetKey(ctx, true); err != nil {
		t.Fatal(err)
	}
	aside := f.stateDir() + ".aside"
	if err := os.Rename(f.d0().Dir, aside); err != nil { // as good as read-only, for root too
		t.Fatal(err)
	}
	if err := os.WriteFile(f.d0().Dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.c.Attach(ctx, "v", "me"); err == nil {
		t.Error("a lease that can't be noted was taken")
	}
	snap, err := f.c.Snapshot(ctx)
	if err != nil || len(snap.Problems) != 1 || snap.Problems[0].File != f.d0().Dir || snap.Devices[0].State != "live" {
		t.Errorf("%+v, %v", snap, err)
	}
	if err := errors.Join(os.Remove(f.d0().Dir), os.Rename(aside, f.d0().Dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.c.Attach(ctx, "v", "me"); err != nil {
		t.Error(err)
	}
	if snap, err := f.c.Snapshot(ctx); err != nil || len(snap.Problems) != 0 {
		t.Errorf("%+v, %v", snap.Problems, err)
	}
}
