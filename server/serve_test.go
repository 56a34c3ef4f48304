package server

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/state"
)

// TestReadingKeepsNoIdleServer: reading keeps no server that is idle, and a command does.
func TestReadingKeepsNoIdleServer(t *testing.T) {
	h := newHost(t)
	s := h.server("v")
	used := func() time.Time {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.used
	}
	was := used()
	h.info("v")
	h.state("v")
	if now := used(); !now.Equal(was) {
		t.Error("looks count")
	}
	if _, err := h.SetStandby(ctx, "v", true); err == nil {
		t.Error("no error")
	}
	if now := used(); !now.After(was) {
		t.Error("orders don't count")
	}
}

// TestIdle: a server that has nothing to serve, and that nobody wants anything of, ends.
func TestIdle(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.persistent("p")
	h.times.idle = 100 * time.Millisecond // of those that start from now on
	h.k.setOpenErr(context.DeadlineExceeded)
	h.up("empty")
	if code := h.exits("empty"); code != ExitOver {
		t.Errorf("an empty one: exit code %d", code)
	}
	h.lose("p")
	h.eventually("p", api.StateWaiting)
	h.lose("v")
	h.up("v")
	if code := h.exits("v"); code != ExitOver || !slices.Contains(h.recorded(), "v") {
		t.Errorf("a lost one: exit code %d, records %v", code, h.recorded())
	}
	// One that has a device, or is to have one again, stays.
	h.k.setOpenErr(nil)
	h.eventually("p", api.StateLive)
	p := h.up("p")
	time.Sleep(3 * h.times.idle)
	select {
	case <-p.ended:
		t.Error("a server left its device for being idle")
	default:
	}
}

// TestOneServerADevice: the next server of a device waits for the one before, and takes over.
func TestOneServerADevice(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	first := h.up("v")
	second := h.launch("v")
	time.Sleep(20 * time.Millisecond)
	select {
	case <-second.up:
		t.Fatal("two servers of one device")
	default:
	}
	// It is the first one that answers, and that is killed.
	if resp, err := h.request(ctx, "v", "GET", "/v1/devices/v", nil); err != nil {
		t.Error(err)
	} else {
		resp.Body.Close()
	}
	h.k.set(func() { close(first.k.dead) })
	h.k.gone("v", true)
	close(first.killed)
	<-first.ended
	<-second.up
	h.eventually("v", api.StateLive)
	if second.s == nil || second.s.started.Before(first.s.started) {
		t.Error("the second isn't the one that serves")
	}
	// One that is told to stop while it waits does.
	third := h.launch("v")
	time.Sleep(5 * time.Millisecond)
	third.term()
	<-third.ended
	h.mu.Lock()
	h.running["v"] = second
	h.mu.Unlock()
	h.eventually("v", api.StateLive)
}

// TestStopWhileItWaits for the server before: that is no failure.
func TestStopWhileItWaits(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	exit, err := serve(ended, Config{Name: "v", RunDir: h.runDir(), StateDir: h.stateDir(), Log: h.log}, &fakeServer{h.k, nil})
	if exit != ExitOver || err != nil {
		t.Errorf("%d, %v", exit, err)
	}
}

// TestServeFails: a server that can't begin says why, and is to be started again.
func TestServeFails(t *testing.T) {
	h := newHost(t)
	if err := os.WriteFile(filepath.Join(h.runDir(), "devices"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	exit, err := serve(ctx, Config{Name: "v", RunDir: h.runDir(), StateDir: h.stateDir(), Log: h.log}, &fakeServer{h.k, nil})
	if exit == ExitOver || exit == ExitLeft || err == nil {
		t.Errorf("%d, %v", exit, err)
	}
}

// TestConcurrent lets clients do what they like on few names and images; the fake driver watches
// the promises, and at the end all is consistent.
func TestConcurrent(t *testing.T) {
	h := newHost(t)
	for i := range 4 {
		h.image(fmt.Sprint("i", i))
	}
	names := []string{"v0", "v1", "v2"}
	stop := make(chan struct{})
	var servers, clients sync.WaitGroup
	for _, name := range names { // whoever has ended is started again
		h.up(name)
		servers.Go(func() {
			for {
				h.mu.Lock()
				p := h.running[name]
				h.mu.Unlock()
				select {
				case <-p.ended:
					if p.exit != ExitOver && p.exit != ExitLeft {
						t.Errorf("%s: exit code %d, %v", name, p.exit, p.err)
					}
					<-h.launch(name).up
				case <-stop:
					return
				}
			}
		})
	}
	for range 8 {
		clients.Go(func() {
			for range 40 {
				name := names[rand.N(len(names))]
				h.mu.Lock()
				p := h.running[name]
				h.mu.Unlock()
				<-p.up
				var err error
				switch rand.N(6) {
				case 0, 1:
					_, err = p.s.Create(ctx, h.spec(name, fmt.Sprint("i", rand.N(4))))
				case 2:
					err = p.s.Remove(ctx, rand.N(2) == 0)
				case 3:
					_, err = p.s.Replace(ctx, api.ReplaceRequest{Image: h.image(fmt.Sprint("i", rand.N(4)))})
				case 4:
					err = p.s.Leave(ctx)
				case 5:
					_, err = p.s.Attach(ctx, "me", rand.N(2) == 0)
				}
				switch api.CodeOf(err) {
				case api.CodeExists, api.CodeNotFound, api.CodeConflict, api.CodeStopping, api.CodeBusy:
				default:
					if err != nil {
						t.Error(err)
					}
				}
				p.s.Device()
			}
		})
	}
	clients.Wait()
	close(stop)
	servers.Wait()
	served, waits := 0, 0
	for _, name := range names {
		if slices.Contains(h.recorded(), name) {
			other := false
			waitFor(t, name, func() bool {
				select {
				case <-h.running[name].ended: // it was left at the last moment
					h.exits(name)
					h.up(name)
				default:
				}
				dev, err := h.Device(ctx, name)
				// Another one may have got its file after it was left.
				other = err == nil && dev.State == api.StateRecovering && strings.Contains(dev.Problem, "belongs to device")
				return other || err == nil && dev.State == api.StateLive
			})
			if other {
				waits++
			} else {
				served++
			}
		}
	}
	if len(h.k.live) != served || len(h.k.waiting) != waits {
		t.Errorf("recorded %v, served %v, waiting %v", h.recorded(), h.k.live, h.k.waiting)
	}
}

// waited is a wait that is under way.
type waited struct {
	dev *api.Device
	err error
}

func (h *host) wait(name string, states ...string) <-chan waited {
	h.up(name)
	done := make(chan waited, 1)
	go func() {
		dev, err := h.Wait(ctx, name, states)
		done <- waited{dev, err}
	}()
	return done
}

// inTime is its end.
func (h *host) inTime(w <-chan waited) waited {
	h.t.Helper()
	select {
	case w := <-w:
		return w
	case <-time.After(patience):
		h.t.Fatal("still waiting")
		return waited{}
	}
}

func TestWait(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	if w := h.inTime(h.wait("v", api.StateLost, api.StateLive)); w.err != nil || w.dev.State != api.StateLive || w.dev.Name != "v" {
		t.Errorf("live: %+v", w)
	}
	wantCode(t, h.inTime(h.wait("u", api.StateLive)).err, api.CodeNotFound)
	wantCode(t, h.inTime(h.wait("v", "alive")).err, api.CodeInvalid)
	wantCode(t, h.inTime(h.wait("v")).err, api.CodeInvalid)
	if w := h.inTime(h.wait("u", api.StateRemoved)); w.err != nil || w.dev.State != api.StateRemoved || w.dev.Name != "u" {
		t.Errorf("removed: %+v", w)
	}
	held := h.wait("v", api.StateStandby, api.StateFailing)
	h.arm("v")
	if _, err := h.SetStandby(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	if w := h.inTime(held); w.err != nil || w.dev.State != api.StateStandby {
		t.Errorf("standby: %+v", w)
	}
	s := h.server("v")
	h.k.set(func() { h.k.asked = 0 })
	gone, other := h.wait("v", api.StateRemoved), h.wait("v", api.StateLost)
	waitFor(t, "the waits", func() bool { h.k.mu.Lock(); defer h.k.mu.Unlock(); return h.k.asked >= 2 })
	if err := s.Remove(ctx, true); err != nil {
		t.Fatal(err)
	}
	if w := h.inTime(gone); w.err != nil || w.dev.State != api.StateRemoved {
		t.Errorf("removed: %+v", w)
	}
	wantCode(t, h.inTime(other).err, api.CodeNotFound) // it can't be lost any more
	h.exits("v")
}

// TestLockIsHeld: whoever wants to know whether a server lives can ask its lock.
func TestLockIsHeld(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if l, err := state.LockDevice(ended, h.runDir(), "v", func(int, bool) {}); err == nil {
		l.Release()
		t.Error("the lock is free")
	}
	if err := h.Remove(ctx, "v", false); err != nil {
		t.Fatal(err)
	}
	l, err := state.LockDevice(ctx, h.runDir(), "v", func(int, bool) { t.Error("the lock is held") })
	if err != nil {
		t.Fatal(err)
	}
	l.Release()
}
