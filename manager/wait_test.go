package manager

import (
	"context"
	"sync"
	"testing"
	"time"

	"holdfast/api"
)

// waited is a wait that is under way.
type waited struct {
	dev *api.Device
	err error
}

func (f *fixture) wait(name string, states ...string) <-chan waited {
	done := make(chan waited, 1)
	go func() {
		dev, err := f.c.Wait(ctx, name, states)
		done <- waited{dev, err}
	}()
	return done
}

// inTime is its end.
func (f *fixture) inTime(w <-chan waited) waited {
	f.t.Helper()
	select {
	case w := <-w:
		return w
	case <-time.After(30 * time.Second):
		f.t.Fatal("still waiting")
		return waited{}
	}
}

func TestWait(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	if w := f.inTime(f.wait("v", api.StateLost, api.StateLive)); w.err != nil || w.dev.State != api.StateLive || w.dev.Name != "v" {
		t.Errorf("live: %+v", w)
	}
	if w := f.inTime(f.wait("ublkb0", api.StateLive)); w.err != nil || w.dev.Name != "v" {
		t.Errorf("by the kernel's name: %+v, %v", w, w.err)
	}
	wantCode(t, f.inTime(f.wait("u", api.StateLive)).err, api.CodeNotFound)
	wantCode(t, f.inTime(f.wait("v", "alive")).err, api.CodeInvalid)
	wantCode(t, f.inTime(f.wait("v")).err, api.CodeInvalid)
	if w := f.inTime(f.wait("u", api.StateRemoved)); w.err != nil || w.dev.State != api.StateRemoved || w.dev.Name != "u" {
		t.Errorf("removed: %+v", w)
	}
	held := f.wait("v", api.StateStandby, api.StateFailing)
	f.arm("v")
	if _, err := f.c.SetStandby(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	if w := f.inTime(held); w.err != nil || w.dev.State != api.StateStandby {
		t.Errorf("standby: %+v", w)
	}
	// What only the manager can see is waited for, too, and over its own restart.
	silent := f.wait("v", api.StateSilent)
	f.restart()
	f.h.server("v").silence()
	if w := f.inTime(silent); w.err != nil || w.dev.State != api.StateSilent {
		t.Errorf("silent: %+v", w)
	}
	f.h.server("v").answer()
	f.eventually("v", api.StateStandby)
	gone, other := f.wait("v", api.StateRemoved), f.wait("v", api.StateLost)
	if err := f.c.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	if w := f.inTime(gone); w.err != nil || w.dev.State != api.StateRemoved {
		t.Errorf("removed: %+v", w)
	}
	wantCode(t, f.inTime(other).err, api.CodeNotFound) // it can't be lost any more
}

// TestWaitEnds: a wait that is given up says so.
func TestWaitEnds(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err := f.c.Wait(short, "v", []string{api.StateLost})
	wantCode(t, err, api.CodeUnreachable)
}

// TestWaitAsksLittle: however many wait, a device that does nothing is asked for its state once
// a second by each at most, and nobody looks for users.
func TestWaitAsksLittle(t *testing.T) {
	f := newFixture(t)
	f.stop()
	f.pace.check = time.Hour
	f.start()
	f.create("v", "i")
	waitFor(t, "its events to be read", func() bool { return len(f.messages("v", api.EventCreated)) == 1 })
	begin := time.Now()
	f.h.set(func() { f.h.asked, f.h.scans = map[string]int{}, 0 })
	ended, cancel := context.WithCancel(ctx)
	var waits sync.WaitGroup
	const n = 10
	for range n {
		waits.Go(func() { f.c.Wait(ended, "v", []string{api.StateLost}) })
	}
	waitFor(t, "all to ask", func() bool { f.h.mu.Lock(); defer f.h.mu.Unlock(); return f.h.asked["v"] >= n })
	cancel()
	waits.Wait()
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	most := n * (2 + int(time.Since(begin)/waitPeriod))
	if f.h.asked["v"] > most || f.h.scans != 0 {
		t.Errorf("asked for the state %d times (at most %d), for users %d times", f.h.asked["v"], most, f.h.scans)
	}
}

// TestConflicts: files of other devices are refused by their paths, whoever writes them; of two
// that want one at the same time, or one name, at most one gets it.
func TestConflicts(t *testing.T) {
	f := newFixture(t)
	f.create("a", "base", "top")
	for _, images := range [][]string{{"top"}, {"base"}, {"top", "x"}} {
		_, err := f.c.Create(ctx, f.spec("b", images...))
		wantCode(t, err, api.CodeConflict)
	}
	f.create("b", "base", "other") // read by both
	f.h.set(func() { f.h.wanted["a"] = false })
	f.h.server("a").kill()
	f.eventually("a", api.StateRecovering)
	_, err := f.c.Create(ctx, f.spec("c", "top"))
	wantCode(t, err, api.CodeConflict)
	_, err = f.c.Create(ctx, f.spec("a", "base", "top"))
	wantCode(t, err, api.CodeConflict)
	var creations sync.WaitGroup
	codes := make(chan api.Code, 8)
	for range cap(codes) {
		creations.Go(func() {
			_, err := f.c.Create(ctx, f.spec("same", "same"))
			code := api.CodeOf(err)
			if err == nil {
				code = ""
			}
			codes <- code
		})
	}
	creations.Wait()
	close(codes)
	made := 0
	for code := range codes {
		if code == "" {
			made++
		} else if code != api.CodeExists {
			t.Errorf("%s", code)
		}
	}
	if made != 1 {
		t.Errorf("%d were made", made)
	}
}
