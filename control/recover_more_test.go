package control

import (
	"errors"
	"fmt"
	"testing"

	"holdfast/api"
	"holdfast/device"
	"holdfast/ublk"
)

// The number of a device that was lost is another's later: after the next death that one gets
// it back, and the lost one does not get the other's users.
func TestNumberOfALostDevice(t *testing.T) {
	f := newFixture(t)
	f.create("a", "a")
	f.k.closeErr["a"] = errors.New("not today")
	wantCode(t, f.c.Remove(ctx, "a", false), api.CodeInternal)
	f.k.set(func() { f.k.next = 0 })
	if b := f.create("b", "b"); b.ID != 0 {
		t.Fatalf("%+v", b)
	}
	for range 6 { // a table is walked in any order
		f.die()
		f.start()
		if b := f.eventually("b", "live"); b.ID != 0 || b.Images[0].Path != f.image("b").Path {
			t.Errorf("%+v", b)
		}
		f.eventually("a", api.StateLost)
	}
}

// So it is with one that was lost by a daemon's death.
func TestNumberOfADeadDevice(t *testing.T) {
	f := newFixture(t)
	f.create("a", "a")
	f.restart()
	f.eventually("a", api.StateLost)
	if rec := f.record("a"); rec.ID != -1 {
		t.Errorf("a lost device has the number %d", rec.ID)
	}
}

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
