package server

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
)

func TestStopIdle(t *testing.T) {
	h := newHost(t)
	h.create("a", "a")
	h.stop("a")
	if len(h.k.live) != 0 || len(h.recorded()) != 0 {
		t.Errorf("left: %v, %v", h.k.live, h.recorded())
	}
	h.up("empty")
	h.stop("empty")
}

func TestStopWaitsForUsers(t *testing.T) {
	h := newHost(t)
	h.create("busy", "b")
	h.k.setUsers("busy", mounted)
	p := h.term("busy")
	time.Sleep(5 * h.times.stopPoll)
	if s := h.state("busy"); s != api.StateLive {
		t.Errorf("state %s", s)
	}
	wantCode(t, h.Leave(ctx, "busy"), api.CodeStopping)
	select {
	case <-p.ended:
		t.Fatal("did not wait")
	default:
	}
	h.k.setUsers("busy")
	if code := h.exits("busy"); code != ExitOver || len(h.recorded()) != 0 {
		t.Errorf("exit code %d, records %v", code, h.recorded())
	}
}

func TestStopByForce(t *testing.T) {
	h := newHost(t)
	var log bytes.Buffer
	h.log = zerolog.New(zerolog.SyncWriter(&log))
	h.create("busy", "b")
	h.k.setUsers("busy", mounted)
	dev := h.k.device("busy")
	p := h.term("busy")
	time.Sleep(3 * h.times.stopPoll)
	close(p.force)
	if code := h.exits("busy"); code != ExitOver || !dev.forced || len(h.recorded()) != 0 {
		t.Errorf("exit code %d, forced %v, records %v", code, dev.forced, h.recorded())
	}
	// What forces it only the caller knows: a signal, or a time-out.
	if !strings.Contains(log.String(), "removing the device, which is in use") || strings.Contains(log.String(), "signal") {
		t.Errorf("log: %s", &log)
	}
}

// TestStopDeparts: a device that is in use still when the time is up is left to the next server.
func TestStopDeparts(t *testing.T) {
	h := newHost(t)
	h.create("busy", "b")
	h.k.setUsers("busy", mounted)
	p := h.term("busy")
	close(p.depart)
	if code := h.exits("busy"); code != ExitOver || !h.record("busy").Left || h.k.waiting[0] != "busy" {
		t.Errorf("exit code %d, record %+v, waiting %v", code, h.record("busy"), h.k.waiting)
	}
	h.eventually("busy", api.StateLive)
}

func TestStopReportsUncleanEnd(t *testing.T) {
	h := newHost(t)
	var log bytes.Buffer
	h.log = zerolog.New(zerolog.SyncWriter(&log))
	h.create("bad", "b")
	h.k.set(func() { h.k.closeErr["bad"] = errors.New("input/output error") })
	h.stop("bad")
	if !slices.Equal(h.recorded(), []string{"bad"}) || !strings.Contains(log.String(), "not ended cleanly") {
		t.Errorf("records %v, log %s", h.recorded(), &log)
	}
}

func TestStopTakesBackCreations(t *testing.T) {
	h := newHost(t)
	h.create("lost", "l")
	h.restart("lost")
	h.eventually("lost", api.StateLost)
	h.k.set(func() { h.k.openHold = make(chan struct{}) }) // never
	for name, left := range map[string][]string{"lost": {"lost"}, "new": {}} {
		s := h.server(name)
		created := make(chan error, 1)
		go func() { _, err := s.Create(ctx, h.spec(name, name[:1])); created <- err }()
		waitFor(t, "the creation", func() bool { return h.state(name) == api.StateCreating })
		h.stop(name)
		wantCode(t, <-created, api.CodeStopping)
		if h.k.isTaken(name) || slices.Contains(h.recorded(), name) != (len(left) > 0) {
			t.Errorf("%s: records %v, taken %v", name, h.recorded(), h.k.taken)
		}
	}
}

// TestStopSecondSignalDuringRemoval: the device hangs in its storage while it is removed, and is
// removed once that answers.
func TestStopSecondSignalDuringRemoval(t *testing.T) {
	h := newHost(t)
	h.create("stuck", "s")
	release := make(chan struct{})
	h.k.set(func() { h.k.closeHold["stuck"] = release })
	p := h.term("stuck")
	waitFor(t, "the hanging removal", func() bool { return h.state("stuck") == api.StateRemoving })
	close(p.force)
	time.Sleep(3 * h.times.stopPoll)
	select {
	case <-p.ended:
		t.Fatal("ended with a device left")
	default:
	}
	close(release)
	if code := h.exits("stuck"); code != ExitOver || len(h.recorded()) != 0 {
		t.Errorf("exit code %d, records %v", code, h.recorded())
	}
}

// TestStopDuringRecovery: users of a device that waits for its recovery can't close it before it is
// served again, so the end of the server waits for both.
func TestStopDuringRecovery(t *testing.T) {
	begin := func(t *testing.T, users ...api.User) *host {
		h := newHost(t)
		h.create("v", "i")
		h.kill("v")
		h.k.set(func() { h.k.leftUsers = users })
		h.k.setOpenErr(errors.New("not today"))
		h.eventually("v", api.StateRecovering)
		return h
	}
	waiting := func(h *host) int {
		h.k.mu.Lock()
		defer h.k.mu.Unlock()
		return len(h.k.waiting)
	}
	t.Run("in use", func(t *testing.T) {
		h := begin(t, mounted)
		p := h.term("v")
		time.Sleep(10 * h.times.stopPoll)
		select {
		case <-p.ended:
			t.Fatal("did not wait")
		default:
		}
		h.k.setUsers("v", mounted) // once it lives
		h.k.setOpenErr(nil)
		h.eventually("v", api.StateLive)
		h.k.setUsers("v")
		if code := h.exits("v"); code != ExitOver || len(h.recorded()) != 0 || waiting(h) != 0 {
			t.Errorf("exit code %d, records %q, %d left", code, h.recorded(), waiting(h))
		}
	})
	t.Run("by force", func(t *testing.T) {
		h := begin(t, mounted)
		p := h.term("v")
		time.Sleep(3 * h.times.stopPoll)
		close(p.force)
		// Its images were not closed: the record is needed.
		if code := h.exits("v"); code != ExitOver || len(h.recorded()) != 1 || waiting(h) != 0 {
			t.Errorf("exit code %d, records %q, %d left", code, h.recorded(), waiting(h))
		}
	})
	t.Run("idle", func(t *testing.T) {
		h := begin(t)
		h.stop("v")
		if len(h.recorded()) != 1 || waiting(h) != 1 {
			t.Errorf("records %q, %d left", h.recorded(), waiting(h))
		}
		h.k.setOpenErr(nil)
		h.eventually("v", api.StateLive)
	})
}

// TestUnanswered: a device on its way out owes nothing, although its removal takes its time.
func TestUnanswered(t *testing.T) {
	h := newHost(t)
	s := h.server("v")
	if d := s.Unanswered(); d != 0 {
		t.Errorf("without a device: %v", d)
	}
	h.create("v", "i")
	h.k.set(func() { h.k.live["v"].unanswered = 3 * time.Second })
	if d := s.Unanswered(); d != 3*time.Second {
		t.Errorf("%v", d)
	}
	hold := make(chan struct{})
	h.k.set(func() { h.k.closeHold["v"] = hold })
	removed := make(chan error, 1)
	go func() { removed <- s.Remove(ctx, true) }()
	waitFor(t, "the removal's begin", func() bool { return h.state("v") == api.StateRemoving })
	if d := s.Unanswered(); d != 0 {
		t.Errorf("during a removal: %v", d)
	}
	close(hold)
	if err := <-removed; err != nil {
		t.Fatal(err)
	}
}
