package control

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/api"

	"github.com/rs/zerolog"
)

func (f *fixture) shutdown() (force chan struct{}, done chan error) {
	force, done = make(chan struct{}), make(chan error, 1)
	go func() { done <- f.d.Shutdown(ctx, force) }()
	return force, done
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestShutdownIdle(t *testing.T) {
	f := newFixture(t)
	f.create("a", "a")
	f.create("b", "b")
	_, done := f.shutdown()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(f.k.live) != 0 || len(f.recorded()) != 0 {
		t.Errorf("left: %v, %v", f.k.live, f.recorded())
	}
}

func TestShutdownWaitsForUsers(t *testing.T) {
	f := newFixture(t)
	f.create("idle", "a")
	f.create("busy", "b")
	f.k.setUsers("busy", mounted)
	_, done := f.shutdown()
	waitFor(t, "the idle device's removal", func() bool { return len(f.states()) == 1 })
	time.Sleep(5 * f.d.poll)
	if f.states()["busy"] != "live" {
		t.Errorf("states %v", f.states())
	}
	if snap, _ := f.c.Snapshot(ctx); !snap.Daemon.Stopping {
		t.Error("a snapshot doesn't say that the daemon is stopping")
	}
	_, err := f.c.Create(ctx, f.spec("new", "c"))
	wantCode(t, err, api.CodeStopping)
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	default:
	}
	f.k.setUsers("busy")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(f.recorded()) != 0 {
		t.Errorf("records %v", f.recorded())
	}
}

func TestShutdownByForce(t *testing.T) {
	f := newFixture(t)
	var log bytes.Buffer
	f.log = zerolog.New(zerolog.SyncWriter(&log))
	f.restart()
	f.create("busy", "b")
	f.k.setUsers("busy", mounted)
	dev := f.k.live["busy"]
	force, done := f.shutdown()
	time.Sleep(3 * f.d.poll)
	close(force)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !dev.forced || len(f.recorded()) != 0 {
		t.Errorf("forced %v, records %v", dev.forced, f.recorded())
	}
	f.crash()
	// What forces it only the caller knows: a signal, or a time-out.
	if !strings.Contains(log.String(), "removing the devices that are in use") || strings.Contains(log.String(), "signal") {
		t.Errorf("log: %s", &log)
	}
}

func TestShutdownTellsOfUncleanEnd(t *testing.T) {
	f := newFixture(t)
	f.create("bad", "b")
	f.create("good", "g")
	f.k.closeErr["bad"] = errors.New("input/output error")
	_, done := f.shutdown()
	if err := <-done; err == nil {
		t.Error("no error")
	}
	if !slices.Equal(f.recorded(), []string{"bad"}) {
		t.Errorf("records %v", f.recorded())
	}
}

func TestShutdownTakesBackCreations(t *testing.T) {
	f := newFixture(t)
	f.create("lost", "l")
	f.restart()
	f.k.openHold = make(chan struct{}) // never
	created := make(chan error, 2)
	for _, name := range []string{"lost", "new"} {
		image := name[:1]
		go func() { _, err := f.d.Create(ctx, f.spec(name, image)); created <- err }()
	}
	waitFor(t, "creations", func() bool {
		s := f.states()
		return s["lost"] == api.StateCreating && s["new"] == api.StateCreating
	})
	_, done := f.shutdown()
	if err := <-done; err != nil {
		t.Error(err)
	}
	wantCode(t, <-created, api.CodeStopping)
	wantCode(t, <-created, api.CodeStopping)
	if !slices.Equal(f.recorded(), []string{"lost"}) || f.k.taken["lost"] {
		t.Errorf("records %v, taken %v", f.recorded(), f.k.taken)
	}
}

func TestShutdownGivesUp(t *testing.T) {
	f := newFixture(t)
	f.create("busy", "b")
	f.k.setUsers("busy", mounted)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := f.d.Shutdown(short, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// TestShutdownSecondSignalDuringRemoval: one device hangs in its storage while it is
// removed; the second signal doesn't wait for it to get the others removed.
func TestShutdownSecondSignalDuringRemoval(t *testing.T) {
	f := newFixture(t)
	f.create("busy", "b")
	f.create("stuck", "s")
	f.k.setUsers("busy", mounted)
	release := make(chan struct{})
	f.k.set(func() { f.k.closeHold = map[string]chan struct{}{"stuck": release} })
	force, done := f.shutdown()
	waitFor(t, "the hanging removal", func() bool { return f.states()["stuck"] == api.StateRemoving })
	close(force)
	waitFor(t, "the other device's removal", func() bool { _, there := f.states()["busy"]; return !there })
	select {
	case err := <-done:
		t.Fatalf("ended with a device left: %v", err)
	default:
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
