package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/state"
	"holdfast/ublk"
)

// A server that died is followed by one that has all it had: leases, standby, number.
func TestRecovery(t *testing.T) {
	h := newHost(t)
	was := h.create("v", "base", "top")
	h.arm("v")
	if _, err := h.SetStandby(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	since := h.eventually("v", api.StateStandby).Standby.Since
	h.k.device("v").event(api.Event{Device: "v", Kind: api.EventStandby}) // the fake's machine tells nobody
	waitFor(t, "that the standby is recorded", func() bool { return h.record("v").Standby != nil })
	for range 3 {
		h.kill("v")
		now := h.eventually("v", api.StateStandby)
		if now.ID != was.ID || now.Standby.Value != "on" || len(now.Standby.Consumers) != 1 || now.Standby.Since == nil || !now.Standby.Since.Equal(*since) {
			t.Errorf("after the recovery: %+v, was %+v since %v", now, was, since)
		}
	}
	if len(h.k.deleted) != 0 {
		t.Errorf("deleted: %v", h.k.deleted)
	}
}

// What can't be recovered says why, takes no orders, and is tried until it can.
func TestRecoveryRefused(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.create("w", "j")
	h.arm("v")
	if _, err := h.SetStandby(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	h.server("v").ledger.recordStandby(h.k.device("v"))
	h.kill("v")
	h.kill("w")
	h.k.setOpenErr(&ploop.FormatError{File: "j", Offset: -1, What: "lock", Class: ploop.ErrLocked, Found: "another process has it"})
	aside := filepath.Join(h.dir, "aside")
	if err := os.Rename(h.image("i").Path, aside); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "what is wrong", func() bool {
		v, w := h.eventually("v", api.StateRecovering), h.eventually("w", api.StateRecovering)
		return strings.Contains(v.Problem, "no such file") && strings.Contains(w.Problem, "another process") && v.Advice != "" && v.ID == 0
	})
	if v, w := h.eventually("v", api.StateRecovering), h.eventually("w", api.StateRecovering); v.Standby.Value != "on" || w.Standby.Value != "not supported" {
		t.Errorf("standby %q, %q", v.Standby.Value, w.Standby.Value)
	}
	_, err := h.SetStandby(ctx, "v", false)
	wantCode(t, err, api.CodeConflict)
	_, err = h.Attach(ctx, "v", "other")
	wantCode(t, err, api.CodeConflict)
	_, err = h.Recover(ctx, "w", false)
	wantCode(t, err, api.CodeImage)
	wantCode(t, h.Remove(ctx, "w", false), api.CodeBusy)
	_, err = h.Create(ctx, h.spec("w", "j"))
	wantCode(t, err, api.CodeConflict)
	h.k.setOpenErr(nil)
	h.eventually("w", api.StateLive)
	h.eventually("v", api.StateRecovering)
	if err := os.Rename(aside, h.image("moved").Path); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Replace(ctx, "v", api.ReplaceRequest{Image: h.image("moved")}); err != nil {
		t.Fatal(err)
	}
	if dev := h.eventually("v", api.StateLive); dev.Images[0].Path != h.image("moved").Path || dev.Standby.Value != "off" {
		t.Errorf("%+v", dev)
	}
	for _, name := range []string{"v", "w"} {
		_, err := h.Recover(ctx, name, false)
		wantCode(t, err, api.CodeConflict)
	}
	_, err = h.Recover(ctx, "u", false)
	wantCode(t, err, api.CodeNotFound)
}

// The recover policy fail lets I/O fail after its time, and is no end.
func TestRecoverPolicyFail(t *testing.T) {
	h := newHost(t)
	spec := h.spec("v", "i")
	spec.RecoverPolicy, spec.RecoverTimeout = api.RecoverFail, api.Duration(time.Millisecond)
	if _, err := h.Create(ctx, spec); err != nil {
		t.Fatal(err)
	}
	h.create("w", "j")
	h.kill("v")
	h.kill("w")
	h.k.setOpenErr(errors.New("not today"))
	h.up("w")
	h.eventually("v", api.StateUnrecovered)
	h.eventually("w", api.StateRecovering)
	h.k.setOpenErr(nil)
	h.eventually("v", api.StateLive)
	h.eventually("w", api.StateLive)
	if len(h.k.failed) == 0 || h.k.failed[0] != 0 {
		t.Errorf("failed: %v", h.k.failed)
	}
}

// A record that is damaged, or lost with its directory, is made up for by its copy.
func TestRecoveryFromTheCopy(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.create("w", "j")
	h.kill("v")
	h.kill("w")
	if err := errors.Join(os.Truncate(h.records().Path("v"), 20), os.Remove(h.records().Path("w"))); err != nil {
		t.Fatal(err)
	}
	h.eventually("v", api.StateLive)
	h.eventually("w", api.StateLive)
	for _, name := range []string{"v", "w"} {
		h.record(name)
	}
	if aside, _ := filepath.Glob(h.records().Path("v") + state.DamagedSuffix + "*"); len(aside) != 1 {
		t.Errorf("put aside: %v", aside)
	}
}

// A record that is damaged and has no copy is put aside: there is no device, and its name is free.
func TestDamagedRecord(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.lose("v")
	if err := errors.Join(os.Truncate(h.records().Path("v"), 20), os.RemoveAll(filepath.Join(h.runDir(), "devices"))); err != nil {
		t.Fatal(err)
	}
	if s := h.state("v"); s != "" {
		t.Errorf("state %q", s)
	}
	_, problems, err := h.records().Read()
	if err != nil || len(problems) != 1 || !strings.Contains(problems[0].File, "v.json.damaged") {
		t.Errorf("%+v, %v", problems, err)
	}
	h.create("v", "i")
}

// A device that can't be recovered can be given up.
func TestGivenUp(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.kill("v")
	h.k.setOpenErr(errors.New("not today"))
	h.eventually("v", api.StateRecovering)
	if err := h.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	if s := h.state("v"); s != "" || len(h.k.deleted) != 1 {
		t.Errorf("%q, deleted %v", s, h.k.deleted)
	}
}

// The number of a device that was lost is another's later: after the next death that one gets
// it back, and the lost one does not get the other's users.
func TestNumberOfALostDevice(t *testing.T) {
	h := newHost(t)
	h.create("a", "a")
	h.k.set(func() { h.k.closeErr["a"] = errors.New("not today") })
	wantCode(t, h.Remove(ctx, "a", false), api.CodeInternal)
	h.k.set(func() { h.k.next = 0 })
	if b := h.create("b", "b"); b.ID != 0 {
		t.Fatalf("%+v", b)
	}
	for range 3 {
		h.kill("a")
		h.kill("b")
		h.eventually("a", api.StateLost)
		if b := h.eventually("b", api.StateLive); b.ID != 0 || b.Images[0].Path != h.image("b").Path {
			t.Errorf("%+v", b)
		}
	}
}

// So it is while the other one waits as well: the driver's mark on a device says whose it is.
func TestNumberOfAnother(t *testing.T) {
	h := newHost(t)
	h.create("a", "a")
	h.kill("a")
	h.k.set(func() { h.k.waiting[0], h.k.tags[0] = "b", h.k.tags[0]+1 })
	h.eventually("a", api.StateLost)
	if err := h.Remove(ctx, "a", true); err != nil {
		t.Error(err)
	}
	if len(h.k.deleted) != 0 || h.k.waiting[0] != "b" {
		t.Errorf("deleted %v, waiting %v", h.k.deleted, h.k.waiting)
	}

	// And where that can't be asked, trying tells.
	h.create("c", "c")
	id := h.record("c").ID
	h.kill("c")
	h.k.set(func() { h.k.leftErr = errors.New("not today"); h.k.waiting[id], h.k.tags[id] = "d", 0 })
	h.eventually("c", api.StateLost)
	if h.k.waiting[id] != "d" {
		t.Errorf("waiting %v", h.k.waiting)
	}
}

// A device that was made before each had a mark of its own is recovered, now and later, by its
// number.
func TestDeviceWithAnOldMark(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	id := h.record("v").ID
	h.kill("v")
	rec := h.record("v")
	rec.Tag = 0
	if err := h.records().Save(rec); err != nil {
		t.Fatal(err)
	}
	h.k.set(func() { h.k.tags[id] = state.OldTag(h.k.stateDir) })
	for range 2 {
		if v := h.eventually("v", api.StateLive); v.ID != id {
			t.Errorf("its number is %d, and was %d", v.ID, id)
		}
		if rec := h.record("v"); rec.Tag != 0 {
			t.Errorf("its mark is %x", rec.Tag)
		}
		h.kill("v")
	}
	// Its number is another's now, and what is made anew has a mark.
	h.k.set(func() { h.k.waiting[id], h.k.tags[id] = "x", state.NewTag(h.k.stateDir, "x", time.Now()) })
	h.eventually("v", api.StateLost)
	h.create("v", "i")
	if rec := h.record("v"); rec.Tag == 0 || rec.ID == id || h.k.waiting[id] != "x" {
		t.Errorf("%+v, waiting %v", rec, h.k.waiting)
	}
}

// A driver that can't be asked is no reason to give devices up.
func TestDriverThatDoesNotAnswer(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.create("w", "j")
	h.kill("v")
	h.kill("w")
	h.k.set(func() {
		h.k.leftErr = errors.New("not today")
		delete(h.k.waiting, 1) // w's is gone
	})
	h.eventually("v", api.StateLive)
	h.eventually("w", api.StateLost)
}

// TestDriverThatHangs: while the driver doesn't say what it has, nothing is done to the device.
func TestDriverThatHangs(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.kill("v")
	hold := make(chan struct{})
	h.k.set(func() { h.k.leftHold = hold })
	s := h.server("v")
	if st := h.state("v"); st != api.StateRecovering {
		t.Errorf("state %q", st)
	}
	removed := make(chan error, 1)
	go func() { removed <- s.Remove(ctx, false) }()
	waitFor(t, "that it waits", func() bool { return len(s.turn.taken) == 1 })
	if h.k.isTaken("v") || len(h.recorded()) != 1 {
		t.Error("a device was removed that the driver may have")
	}
	h.k.setOpenErr(errors.New("not today"))
	close(hold)
	wantCode(t, <-removed, api.CodeBusy)
}

// A file that can't be the device's is no reason either.
func TestReplaceLeftByAnotherDisk(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.kill("v")
	h.k.setOpenErr(fmt.Errorf("%w: it has 1 byte", ublk.ErrOtherDisk))
	h.eventually("v", api.StateRecovering)
	if _, err := h.Replace(ctx, "v", api.ReplaceRequest{Image: h.image("other"), Force: true}); err == nil {
		t.Error("no error")
	}
	h.eventually("v", api.StateRecovering)
	// What was refused is nobody's.
	h.k.setOpenErr(nil)
	h.create("w", "other")
	h.k.setOpenErr(nil)
	if v := h.eventually("v", api.StateLive); v.Images[0].Path != h.image("i").Path {
		t.Errorf("%+v", v.Images)
	}
}

// What was removed while its recovery paused is the end of that.
func TestRemovedWhileItFails(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.kill("v")
	h.k.setOpenErr(errors.New("not today"))
	h.eventually("v", api.StateRecovering)
	s := h.server("v")
	if err := h.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	s.recovery.failIOInTurn(ctx)
	s.recovery.failIO(ctx)
	if len(h.k.failed) != 0 {
		t.Errorf("failed: %v", h.k.failed)
	}
}
