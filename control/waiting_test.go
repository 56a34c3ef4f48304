package control

import (
	"errors"
	"fmt"
	"testing"

	"holdfast/api"
	"holdfast/server/device"
	"holdfast/ublk"
)

// A driver that can't be asked is no reason to give devices up.
func TestDriverThatDoesNotTell(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.create("w", "j")
	f.die()
	f.k.set(func() {
		f.k.leftErr = errors.New("not today")
		delete(f.k.waiting, 1) // w's is gone
	})
	f.start()
	f.eventually("v", "live")
	f.eventually("w", api.StateLost)
}

// A file that can't be the device's is no reason either.
func TestReplaceLeftByAnotherDisk(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.die()
	f.setOpenErr(fmt.Errorf("%w: it has 1 byte", ublk.ErrOtherDisk))
	f.start()
	f.eventually("v", api.StateRecovering)
	if _, err := f.c.Replace(ctx, "v", api.ReplaceRequest{Image: f.image("other"), Force: true}); err == nil {
		t.Error("no error")
	}
	f.eventually("v", api.StateRecovering)
	f.setOpenErr(nil)
	if v := f.eventually("v", "live"); v.Images[0].Path != f.image("i").Path {
		t.Errorf("%+v", v.Images)
	}
}

// Who tries by hand what is tried again and again anyway does not end that.
func TestCreateOfAWaitingDevice(t *testing.T) {
	f := newFixture(t)
	f.persistent("a")
	f.stop()
	f.setOpenErr(errors.New("not today"))
	f.start()
	f.eventually("a", api.StateWaiting)
	spec := f.spec("a", "a")
	spec.Persist = true
	if _, err := f.c.Create(ctx, spec); err == nil {
		t.Error("no error")
	}
	f.eventually("a", api.StateWaiting)
	f.setOpenErr(nil)
	f.comesBack("a")
}

// A device that is stuck in its creation has its record until it is removed.
func TestStuckCreation(t *testing.T) {
	f := newFixture(t)
	f.setOpenErr(fmt.Errorf("%w: x", device.ErrStuck))
	if _, err := f.c.Create(ctx, f.spec("a", "a")); err == nil {
		t.Fatal("no error")
	}
	if dev := f.eventually("a", api.StateLost); dev.Problem == "" {
		t.Errorf("%+v", dev)
	}
	_, err := f.c.Create(ctx, f.spec("b", "a"))
	wantCode(t, err, api.CodeConflict)
	if got := f.recorded(); len(got) != 1 {
		t.Errorf("recorded: %q", got)
	}
}

// What was removed while its recovery paused is the end of that.
func TestRemovedWhileItFails(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.die()
	f.setOpenErr(errors.New("not today"))
	f.start()
	s := f.d.slots["v"]
	f.eventually("v", api.StateRecovering)
	if err := f.c.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	f.d.failLeft(ctx, s)
	f.d.failDevice(ctx, s)
	if len(f.k.failed) != 0 {
		t.Errorf("failed: %v", f.k.failed)
	}
}

// Of a lost device that is created again the new record counts, also where only one of the
// two directories could be written to.
func TestSerialGoesOn(t *testing.T) {
	f := newFixture(t)
	f.create("a", "a")
	f.restart()
	f.eventually("a", api.StateLost)
	was := f.record("a").Serial
	f.create("a", "a")
	if now := f.record("a").Serial; now <= was {
		t.Errorf("serial %d, and it was %d", now, was)
	}
	f.restart()
	was = f.record("a").Serial
	f.setOpenErr(errors.New("not today"))
	if _, err := f.c.Create(ctx, f.spec("a", "a")); err == nil {
		t.Error("no error")
	}
	if now := f.record("a").Serial; now < was+2 {
		t.Errorf("after a creation was taken back: serial %d, and it was %d", now, was)
	}
}
