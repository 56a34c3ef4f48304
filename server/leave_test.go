package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/api"
	"holdfast/server/device"
)

// A device that was left in order needs no fence, and has its number and users on.
func TestLeave(t *testing.T) {
	h := newHost(t)
	was := h.create("v", "i")
	var left []bool
	h.k.set(func() { h.k.recovered = func(r device.Recovery) { left = append(left, r.Left) } })
	if err := h.Leave(ctx, "v"); err != nil { // exits with ExitLeft
		t.Fatal(err)
	}
	if rec := h.record("v"); !rec.Left || rec.ID != was.ID {
		t.Errorf("%+v", rec)
	}
	if v := h.eventually("v", api.StateLive); v.ID != was.ID {
		t.Errorf("%+v", v)
	}
	// A death is no leaving.
	waitFor(t, "that it is recorded", func() bool { return !h.record("v").Left })
	h.kill("v")
	h.eventually("v", api.StateLive)
	if len(left) != 2 || !left[0] || left[1] {
		t.Errorf("recovered as left in order: %v", left)
	}
	if len(h.k.deleted) != 0 {
		t.Errorf("deleted %v", h.k.deleted)
	}
}

// What another server couldn't take over isn't left.
func TestLeaveExaminesFirst(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.k.set(func() { h.k.examineErr = map[string]error{"v": errors.New("it is shorter")} })
	err := h.Leave(ctx, "v")
	if err == nil || !strings.Contains(err.Error(), `device "v"`) || !strings.Contains(err.Error(), "it is shorter") {
		t.Fatal(err)
	}
	h.k.set(func() { h.k.examineErr = nil })
	// Another file by the same name.
	i := filepath.Join(h.dir, "i")
	if err := errors.Join(os.Rename(i, i+".aside"), os.WriteFile(i, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := h.Leave(ctx, "v"); err == nil || !strings.Contains(err.Error(), `device "v"`) {
		t.Fatal(err)
	}
	if err := os.Rename(i+".aside", i); err != nil {
		t.Fatal(err)
	}
	// Requests that don't end.
	h.k.set(func() { h.k.closeErr["v"] = errors.New("3 requests are under way") })
	e := wantCode(t, h.Leave(ctx, "v"), api.CodeBusy)
	if !strings.Contains(e.Message, "3 requests") {
		t.Errorf("%q", e.Message)
	}
	h.k.set(func() { delete(h.k.closeErr, "v") })
	if h.state("v") != api.StateLive || h.record("v").Left || len(h.k.waiting) != 0 {
		t.Errorf("%s, %+v, waiting %v", h.state("v"), h.record("v"), h.k.waiting)
	}
	if err := h.Leave(ctx, "v"); err != nil {
		t.Error(err)
	}
	wantCode(t, h.Leave(ctx, "none"), api.CodeNotFound)
}

// A device that waits for its recovery, or fails, is left as it is.
func TestLeaveWhileItWaits(t *testing.T) {
	h := newHost(t)
	spec := h.spec("v", "i")
	spec.RecoverPolicy, spec.RecoverTimeout = api.RecoverFail, 1
	if _, err := h.Create(ctx, spec); err != nil {
		t.Fatal(err)
	}
	h.kill("v")
	h.k.setOpenErr(errors.New("not today"))
	for range 2 {
		h.eventually("v", api.StateUnrecovered)
		if err := h.Leave(ctx, "v"); err != nil {
			t.Fatal(err)
		}
		if h.k.waiting[0] != "v" {
			t.Errorf("waiting: %v", h.k.waiting)
		}
	}
	h.k.setOpenErr(nil)
	h.eventually("v", api.StateLive)
}

// A standby that the last requests have led to is recorded before the successor looks.
func TestStandbyAtTheLastMoment(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.arm("v")
	d := h.k.device("v")
	h.k.set(func() { d.leaving = func() { _ = d.machine.Set() } })
	if err := h.Leave(ctx, "v"); err != nil {
		t.Fatal(err)
	}
	if rec := h.record("v"); rec.Standby == nil {
		t.Error("it is not in the record")
	}
	// What the device's keeper says late changes nothing that the successor has.
	h.eventually("v", api.StateStandby)
}

// A state directory that takes nothing has the next server set a fence, and loses nothing.
func TestLeaveNotDurable(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.unwritable(func() {
		if err := h.Leave(ctx, "v"); err != nil {
			t.Error(err)
		}
	})
	h.eventually("v", api.StateLive)
}
