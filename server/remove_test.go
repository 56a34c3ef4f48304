package server

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/server/device"
)

func TestRemoveBusy(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.k.setUsers("v", mounted)
	e := wantCode(t, h.Remove(ctx, "v", false), api.CodeBusy)
	if !strings.Contains(e.Message, "mounted on /mnt") || !reflect.DeepEqual(e.Users, []api.User{mounted}) {
		t.Errorf("%q, %+v", e.Message, e.Users)
	}
	dev, err := h.Device(ctx, "v")
	if err != nil || dev.State != api.StateLive || !reflect.DeepEqual(dev.Users, []api.User{mounted}) {
		t.Errorf("%+v, %v", dev, err)
	}
	// Who looks for users of many devices doesn't want each to.
	scans := h.k.scans
	if dev, err := call[api.Device](ctx, h, "v", "GET", "?users=false", nil); err != nil || len(dev.Users) != 0 || h.k.scans != scans {
		t.Errorf("%+v, %v, %d scans", dev.Users, err, h.k.scans-scans)
	}
	// Somebody whom only the kernel sees.
	h.k.setUsers("v")
	h.k.set(func() { h.k.closeErr["v"] = fmt.Errorf("try: %w", device.ErrBusy) })
	wantCode(t, h.Remove(ctx, "v", false), api.CodeBusy)
	h.k.set(func() { delete(h.k.closeErr, "v") })
	h.k.setUsers("v", mounted)
	if err := h.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
}

// TestUsersHang: a search for users that hangs leaves the device without them, and a removal to
// the kernel's own judgement.
func TestUsersHang(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.server("v").users.Limit = 10 * time.Millisecond
	hold := make(chan struct{})
	defer close(hold)
	h.k.set(func() { h.k.scanHold, h.k.scans = hold, 0 })
	h.k.setUsers("v", mounted)
	for range 3 {
		if dev, err := h.Device(ctx, "v"); err != nil || dev.State != api.StateLive || len(dev.Users) != 0 {
			t.Errorf("%+v, %v", dev, err)
		}
	}
	h.k.set(func() { h.k.closeErr["v"] = fmt.Errorf("try: %w", device.ErrBusy) })
	wantCode(t, h.Remove(ctx, "v", false), api.CodeBusy)
	h.k.set(func() { delete(h.k.closeErr, "v") })
	h.k.setUsers("v")
	if err := h.Remove(ctx, "v", false); err != nil {
		t.Error(err)
	}
	h.k.mu.Lock()
	defer h.k.mu.Unlock()
	if h.k.scans != 1 {
		t.Errorf("%d searches hang", h.k.scans)
	}
}

func TestRemoveWaitsForUdev(t *testing.T) {
	h := newHost(t)
	h.times.settle = patience
	h.create("v", "i")
	h.k.setUsers("v", api.User{Kind: "process", Name: "(udev-worker)", PID: 1})
	removed := make(chan error, 1)
	go func() { removed <- h.server("v").Remove(ctx, false) }()
	waitFor(t, "a search for users", func() bool { h.k.mu.Lock(); defer h.k.mu.Unlock(); return h.k.scans > 0 })
	h.k.setUsers("v")
	if err := <-removed; err != nil {
		t.Error(err)
	}
	h.exits("v")
	h.times.settle = 100 * time.Millisecond
	h.create("v", "i")
	h.k.setUsers("v", api.User{Kind: "process", Name: "blkid", PID: 1})
	e := wantCode(t, h.Remove(ctx, "v", false), api.CodeBusy)
	if !strings.Contains(e.Message, "blkid") {
		t.Errorf("%q", e.Message)
	}
}

func TestUncleanCloseIsLost(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.k.set(func() { h.k.closeErr["v"] = errors.New("input/output error") })
	wantCode(t, h.Remove(ctx, "v", false), api.CodeInternal)
	dev, err := h.Device(ctx, "v")
	if err != nil || dev.State != api.StateLost || !strings.Contains(dev.Problem, "input/output") || dev.Advice == "" {
		t.Errorf("%+v, %v", dev, err)
	}
	if !slices.Equal(h.recorded(), []string{"v"}) {
		t.Error("the record is gone while the image is in use")
	}
	if err := h.Remove(ctx, "v", false); err != nil || !h.k.isTaken("v") {
		t.Errorf("the images were not closed: %v", err)
	}
}

func TestSlowCloseIsTriedAgain(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.k.set(func() {
		h.k.closeErr["v"] = fmt.Errorf("another change of its files is under way: %w", context.DeadlineExceeded)
	})
	e := wantCode(t, h.Remove(ctx, "v", false), api.CodeInternal)
	dev, err := h.Device(ctx, "v")
	// What it waits for is the device's to say.
	if err != nil || !strings.Contains(e.Message, "try again") || dev.Path == "" || dev.Advice == "" ||
		!strings.Contains(e.Message, "change of its files") || !strings.Contains(dev.Problem, "change of its files") || strings.Contains(e.Message+dev.Problem, "requests") {
		t.Errorf("%q, %+v, %v", e.Message, dev, err)
	}
	// A stop goes on trying.
	h.term("v")
	time.Sleep(3 * h.times.stopPoll)
	h.k.set(func() { delete(h.k.closeErr, "v") })
	if code := h.exits("v"); code != ExitOver || len(h.recorded()) != 0 {
		t.Errorf("exit code %d, %v", code, h.recorded())
	}
}

func TestRemoveLostFails(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	ro := h.spec("r", "j")
	ro.ReadOnly = true
	if _, err := h.Create(ctx, ro); err != nil {
		t.Fatal(err)
	}
	h.restart("v")
	h.restart("r")
	h.k.set(func() {
		h.k.stackErr = &ploop.FormatError{File: "i", What: "BAT", Found: "rubbish", Class: ploop.ErrCorrupt}
	})
	e := wantCode(t, h.Remove(ctx, "v", false), api.CodeImage)
	if !strings.Contains(e.Message, "rubbish") || h.state("v") != api.StateLost {
		t.Errorf("%q, %v", e.Message, h.state("v"))
	}
	if err := h.Remove(ctx, "v", true); err != nil {
		t.Error(err)
	}
	if err := h.Remove(ctx, "r", false); err != nil || h.k.isTaken("r") {
		t.Errorf("a reader leaves no mark to be cleared: %v, %v", err, h.k.taken)
	}
}

// TestInterrupted: what goes on in the server when its client is interrupted is named.
func TestInterrupted(t *testing.T) {
	h := newHost(t)
	hold := make(chan struct{})
	for i, what := range []string{"the removal", "the replacement"} {
		s := h.server(fmt.Sprintf("v%d", i))
		client, interrupt := context.WithCancel(ctx)
		err := s.turn.inBackground(client, what, func(context.Context) error { interrupt(); <-hold; return nil })
		if err == nil || !strings.Contains(err.Error(), what+" goes on in the server") {
			t.Errorf("%v", err)
		}
	}
	close(hold)
}
