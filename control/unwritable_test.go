package control

import (
	"errors"
	"os"
	"testing"

	"holdfast/api"
)

// unwritable is a state directory that nothing can be written to, until the end of do: as good
// as read-only, for root too.
func (f *fixture) unwritable(do func()) {
	f.t.Helper()
	aside := f.stateDir() + ".aside"
	if err := errors.Join(os.Rename(f.d0().Dir, aside), os.WriteFile(f.d0().Dir, nil, 0o600)); err != nil {
		f.t.Fatal(err)
	}
	do()
	if err := errors.Join(os.Remove(f.d0().Dir), os.Rename(aside, f.d0().Dir)); err != nil {
		f.t.Fatal(err)
	}
}

// A change that was refused, as it could not be noted, does not come true by a crash.
func TestRefusedChangeStaysRefused(t *testing.T) {
	f := newFixture(t)
	f.create("v", "old")
	f.unwritable(func() {
		if _, err := f.c.Replace(ctx, "v", api.ReplaceRequest{Image: f.image("new")}); err == nil {
			t.Error("a replacement that can't be noted")
		}
		if _, err := f.c.Attach(ctx, "v", "me"); err == nil {
			t.Error("a lease that can't be noted")
		}
	})
	f.die()
	f.start()
	if v := f.eventually("v", "live"); v.Images[0].Path != f.image("old").Path || len(v.Standby.Consumers) != 0 {
		t.Errorf("%+v, %+v", v.Images, v.Standby.Consumers)
	}
}

// What is so already is not forgotten for having been noted in the copy only.
func TestStandbyNotedInTheCopy(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	if _, err := f.c.SetKey(ctx, true); err != nil {
		t.Fatal(err)
	}
	if _, err := f.c.Attach(ctx, "v", "me"); err != nil {
		t.Fatal(err)
	}
	f.unwritable(func() {
		if _, err := f.c.SetStandby(ctx, "v", true); err != nil {
			t.Fatal(err)
		}
		f.d.noteStandby(f.d.slots["v"], f.d.slots["v"].dev)
		f.d.noteLease(lease{"lio", "v", f.d.slots["v"].dev}, true)
	})
	f.die()
	f.start()
	f.eventually("v", api.StateStandby)
}

// A standby that the last requests of an upgrade have led to is noted before the heir looks.
func TestStandbyAtTheLastMoment(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	if _, err := f.c.SetKey(ctx, true); err != nil {
		t.Fatal(err)
	}
	if _, err := f.c.Attach(ctx, "v", "me"); err != nil {
		t.Fatal(err)
	}
	s := f.d.slots["v"]
	f.k.live["v"].leaving = func() { _ = f.k.live["v"].machine.Set() }
	if err := f.d.leave(ctx, s, s.dev, nil); err != nil {
		t.Fatal(err)
	}
	if rec := f.record("v"); rec.Standby == nil {
		t.Error("it is not in the record")
	}
}
