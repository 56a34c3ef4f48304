package control

import (
	"context"
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
		t.Errorf("by the kernel's name: %+v", w)
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
	gone, other := f.wait("v", api.StateRemoved), f.wait("v", api.StateLost)
	if err := f.c.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	if w := f.inTime(gone); w.err != nil || w.dev.State != api.StateRemoved {
		t.Errorf("removed: %+v", w)
	}
	wantCode(t, f.inTime(other).err, api.CodeNotFound) // it can't be lost any more
}

// TestWaitEnds: a wait that is given up says so, and leaves nothing behind in the daemon.
func TestWaitEnds(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err := f.c.Wait(short, "v", []string{api.StateLost})
	wantCode(t, err, api.CodeUnreachable)
}

// TestWaitOverRestart: a wait goes on when the daemon is restarted, and sees what the next one
// makes of the device.
func TestWaitOverRestart(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	lost := f.wait("v", api.StateLost)
	waitFor(t, "the wait to begin", func() bool { return f.waiting() > 0 })
	f.restart()
	if w := f.inTime(lost); w.err != nil || w.dev.State != api.StateLost {
		t.Errorf("%+v", w)
	}
	// And one that begins in a daemon that is about to end by itself is answered by it.
	f.create("v", "i")
	gone := f.wait("v", api.StateRemoved)
	waitFor(t, "the wait to begin", func() bool { return f.waiting() > 0 })
	if err := f.d.Shutdown(ctx, nil); err != nil {
		t.Fatal(err)
	}
	f.crash()
	if w := f.inTime(gone); w.err != nil || w.dev.State != api.StateRemoved {
		t.Errorf("%+v", w)
	}
}

// waiting is how many wait for a change.
func (f *fixture) waiting() int {
	f.d.changed.mu.Lock()
	defer f.d.changed.mu.Unlock()
	if f.d.changed.ch == nil {
		return 0
	}
	return 1
}

// TestWaitAsksLittle: however many wait, a device that does nothing is asked for its state once
// a second by each at most, and nobody looks for users.
func TestWaitAsksLittle(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	begin := time.Now()
	f.k.set(func() { f.k.asked, f.k.scans = 0, 0 })
	ended, cancel := context.WithCancel(ctx)
	done := make(chan struct{}, 10)
	for range cap(done) {
		go func() { f.c.Wait(ended, "v", []string{api.StateLost}); done <- struct{}{} }()
	}
	time.Sleep(300 * time.Millisecond)
	cancel()
	for range cap(done) {
		<-done
	}
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	most := cap(done) * (2 + int(time.Since(begin)/waitPeriod))
	if f.k.asked > most || f.k.scans != 0 {
		t.Errorf("asked for the state %d times (at most %d), for users %d times", f.k.asked, most, f.k.scans)
	}
}
