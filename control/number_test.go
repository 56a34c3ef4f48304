package control

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/state"
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

// renumber has the driver give a device's number to another one, which waits for a server.
func (f *fixture) renumber(id int, tag state.Tag) {
	f.k.set(func() { f.k.tags[id], f.k.waiting[id] = tag, true })
}

// untouched fails if anybody did anything to a device that waits.
func (f *fixture) untouched(id int) {
	f.t.Helper()
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	if !f.k.waiting[id] || len(f.k.deleted) > 0 || len(f.k.failed) > 0 {
		f.t.Errorf("waiting %v, deleted %v, failed %v", f.k.waiting, f.k.deleted, f.k.failed)
	}
}

// While there was no daemon the device's number was given to another one, of ours or of somebody
// else's. That is not taken over, failed or deleted in its place.
func TestNumberGivenToAnother(t *testing.T) {
	for name, tag := range map[string]func(f *fixture) state.Tag{
		"ours":      func(f *fixture) state.Tag { return state.NewTag(f.stateDir(), "w", time.Now()) },
		"our older": func(f *fixture) state.Tag { return state.OldTag(f.stateDir()) },
		"made anew": func(f *fixture) state.Tag { return state.NewTag(f.stateDir(), "v", time.Now()) },
		"another's": func(f *fixture) state.Tag { return state.NewTag("/elsewhere", "v", time.Now()) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.create("v", "i")
			f.die()
			f.renumber(0, tag(f))
			f.start()
			f.eventually("v", api.StateLost)
			if err := f.c.Remove(ctx, "v", true); err != nil {
				t.Error(err)
			}
			f.untouched(0)
			if _, err := f.c.Create(ctx, f.spec("w", "i")); err != nil {
				t.Error(err)
			}
			f.untouched(0)
		})
		t.Run(name+", while the driver does not tell", func(t *testing.T) {
			f := newFixture(t)
			f.create("v", "i")
			f.die()
			f.renumber(0, tag(f))
			f.k.set(func() { f.k.leftErr = errors.New("not today") })
			f.start()
			f.eventually("v", api.StateLost)
			f.untouched(0)
		})
		t.Run(name+", while it waits", func(t *testing.T) {
			f := newFixture(t)
			f.create("v", "i")
			f.die()
			f.setOpenErr(errors.New("not today"))
			f.start()
			f.eventually("v", api.StateRecovering)
			f.renumber(0, tag(f))
			f.d.failLeft(ctx, f.d.slots["v"])
			if err := f.c.Remove(ctx, "v", true); err != nil {
				t.Error(err)
			}
			f.untouched(0)
		})
	}
}

// forgetTags makes the device one that was made before each had a mark of its own.
func (f *fixture) forgetTags(name string) {
	f.t.Helper()
	r := state.Records{Dir: filepath.Join(f.stateDir(), "devices"), Run: f.runDir()}
	rec := f.record(name)
	if rec.Tag == 0 {
		f.t.Fatalf("%+v has no mark", rec)
	}
	rec.Tag = 0
	if err := r.Save(rec); err != nil {
		f.t.Fatal(err)
	}
	f.k.set(func() { delete(f.k.tags, rec.ID) })
}

// A device that was made before each had a mark of its own is recovered, now and later, by its number.
func TestDeviceWithAnOldMark(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.create("w", "j")
	f.die()
	f.forgetTags("v")
	for range 2 {
		f.start()
		for id, name := range []string{"v", "w"} {
			if dev := f.eventually(name, "live"); dev.ID != id {
				t.Errorf("%s has the number %d", name, dev.ID)
			}
		}
		if v, w := f.record("v"), f.record("w"); v.Tag != 0 || !w.Tag.Of(f.stateDir()) || w.Tag == state.OldTag(f.stateDir()) {
			t.Errorf("marks %x and %x", v.Tag, w.Tag)
		}
		f.die()
	}
	// Its number is that of a new device.
	f.renumber(0, state.NewTag(f.stateDir(), "x", time.Now()))
	f.start()
	f.eventually("v", api.StateLost)
	f.eventually("w", "live")
	f.untouched(0)
	if _, err := f.c.Create(ctx, f.spec("v", "i")); err != nil { // again: with a mark
		t.Error(err)
	}
	if v := f.record("v"); v.Tag == 0 {
		t.Errorf("%+v", v)
	}
}
