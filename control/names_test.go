package control

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"holdfast/api"
)

// TestKernelNames: wherever a device is named, the kernel's name does as well, and means no
// other device.
func TestKernelNames(t *testing.T) {
	f := newFixture(t)
	f.create("a", "i")
	f.create("b", "j")
	for disk, name := range map[string]string{"ublkb0": "a", "ublkb1": "b", "b": "b"} {
		dev, err := f.c.Device(ctx, disk)
		if err != nil || dev.Name != name {
			t.Errorf("%s: %+v, %v", disk, dev, err)
		}
		dev, err = f.c.Attach(ctx, disk, "me")
		if err != nil && api.CodeOf(err) != api.CodeConflict || dev != nil && dev.Name != name {
			t.Errorf("attach %s: %+v, %v", disk, dev, err)
		}
	}
	if _, err := f.c.SetKey(ctx, true); err != nil {
		t.Fatal(err)
	}
	if dev, err := f.c.SetStandby(ctx, "ublkb1", true); err != nil || dev.Name != "b" || dev.State != api.StateStandby {
		t.Errorf("%+v, %v", dev, err)
	}
	if dev, err := f.c.Replace(ctx, "ublkb1", api.ReplaceRequest{Image: f.image("new")}); err != nil || dev.Name != "b" || dev.Images[0].Path != f.image("new").Path {
		t.Errorf("%+v, %v", dev, err)
	}
	if dev, err := f.c.Detach(ctx, "ublkb1", "me"); err != nil || dev.Name != "b" {
		t.Errorf("%+v, %v", dev, err)
	}
	if _, err := f.c.Recover(ctx, "ublkb1", false); err == nil || !strings.Contains(err.Error(), `"b"`) {
		t.Errorf("%v", err)
	}
	n := 0
	if err := f.c.Events(ctx, api.EventsQuery{Device: "ublkb1"}, func(e api.Event) error {
		if n++; e.Device != "b" {
			return errors.New(e.Device)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	for _, none := range []string{"ublkb7", "ublkb01", "ublkb99999999999999999999", "ublkc0", "ublkb"} {
		_, err := f.c.Device(ctx, none)
		wantCode(t, err, api.CodeNotFound)
		wantCode(t, f.c.Remove(ctx, none, true), api.CodeNotFound)
	}
	if err := f.c.Remove(ctx, "ublkb0", false); err != nil {
		t.Error(err)
	}
	if s := f.states(); len(s) != 1 || s["b"] == "" {
		t.Errorf("left: %v", s)
	}
	// A lost device has a number no more, whatever its record says.
	f.restart()
	_, err := f.c.Device(ctx, "ublkb1")
	wantCode(t, err, api.CodeNotFound)
	// One that two claim is nobody's.
	f.k.set(func() { f.k.next = 5 })
	f.create("c", "k")
	f.d.mu.Lock()
	f.d.slots["twin"] = &slot{name: "twin", op: make(chan struct{}, 1), dev: f.d.slots["c"].dev, rec: f.d.slots["c"].rec}
	f.d.mu.Unlock()
	_, err = f.c.Device(ctx, "ublkb5")
	if e := wantCode(t, err, api.CodeConflict); !strings.Contains(e.Message, "give a name") {
		t.Errorf("%q", e.Message)
	}
	f.d.mu.Lock()
	delete(f.d.slots, "twin")
	f.d.mu.Unlock()
}

// TestEventsOfNobody: events of a device that was never there are an error; those of one that
// was removed are told.
func TestEventsOfNobody(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.k.live["v"].event(api.Event{Device: "v", Kind: api.EventCreated})
	if err := f.c.Remove(ctx, "v", false); err != nil {
		t.Fatal(err)
	}
	if kinds := f.events("v"); len(kinds) == 0 {
		t.Error("no event of a device that was removed")
	}
	for _, follow := range []bool{false, true} {
		short, cancel := context.WithCancel(ctx)
		err := f.c.Events(short, api.EventsQuery{Device: "u", Follow: follow}, func(api.Event) error { return nil })
		cancel()
		wantCode(t, err, api.CodeNotFound)
	}
}

// TestOrder: what is listed has an order, and not another one each time.
func TestOrder(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{"b", "c", "a"} {
		f.d.problems = append(f.d.problems, api.Problem{File: f.image(name).Path})
	}
	snap, err := f.c.Snapshot(ctx)
	if err != nil || len(snap.Problems) != 3 {
		t.Fatalf("%+v, %v", snap, err)
	}
	if !slices.IsSortedFunc(snap.Problems, func(a, b api.Problem) int { return strings.Compare(a.File, b.File) }) {
		t.Errorf("%+v", snap.Problems)
	}
}
