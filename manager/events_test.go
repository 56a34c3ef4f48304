package manager

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/api"
)

// messages are those of a device's events of one kind.
func (f *fixture) messages(name, kind string) (all []string) {
	f.t.Helper()
	if err := f.c.Events(ctx, api.EventsQuery{Device: name}, func(e api.Event) error {
		if e.Kind == kind {
			all = append(all, e.Message)
		}
		return nil
	}); err != nil && api.CodeOf(err) != api.CodeNotFound {
		f.t.Fatal(err)
	}
	return all
}

// TestNoEventIsLost: over deaths of servers, and of managers, each event is read once.
func TestNoEventIsLost(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	told := 0
	tell := func(n int) {
		for range n {
			told++
			f.h.server("v").event(api.EventParked, fmt.Sprint(told))
		}
	}
	want := func(from int) {
		t.Helper()
		var all []string
		for i := from; i <= told; i++ {
			all = append(all, fmt.Sprint(i))
		}
		waitFor(t, "all events", func() bool { return slices.Equal(f.messages("v", api.EventParked), all) })
	}
	tell(5)
	want(1)
	pid := f.h.server("v").pid
	f.h.server("v").kill()
	waitFor(t, "the next server", func() bool { return f.h.server("v").pid != pid })
	tell(5)
	want(1)
	// While there is no manager. The next one lists what was before, and what came since.
	f.stop()
	tell(5)
	f.start()
	want(1)
	if got := f.messages("v", api.EventMissed); len(got) != 0 {
		t.Errorf("missed: %v", got)
	}
	// What a journal has lost is told of.
	f.stop()
	tell(3)
	f.h.server("v").lose()
	tell(1)
	f.start()
	want(19)
	if got := f.messages("v", api.EventMissed); len(got) != 1 || !strings.HasPrefix(got[0], "3 events") {
		t.Errorf("missed: %v", got)
	}
	// And so is another journal.
	f.h.set(func() { f.h.wanted["v"] = false })
	f.h.server("v").kill()
	if err := os.Remove(filepath.Join(f.run(), "devices/v/events")); err != nil {
		t.Fatal(err)
	}
	f.h.Start(ctx, "v")
	f.eventually("v", api.StateLive)
	tell(1)
	want(19)
	if got := f.messages("v", api.EventMissed); len(got) != 2 {
		t.Errorf("missed: %v", got)
	}
	// A device that is gone has its events yet.
	if err := f.c.Remove(ctx, "v", false); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its end", func() bool { return f.m.peers.get("v") == nil })
	want(19)
}

// TestGapInJournal: numbers that are missing are told of, whatever the server says, and each is
// counted once.
func TestGapInJournal(t *testing.T) {
	f := newFixture(t)
	ev := f.m.events
	take := func(e api.Event, fresh, gap bool) {
		t.Helper()
		if is := ev.take("g", e); is.fresh != fresh || is.gap != gap {
			t.Errorf("%+v: %+v", e, is)
		}
	}
	take(api.Event{Kind: api.EventJournal, Message: "a", Seq: 9, Missed: 4}, false, false) // nobody has missed them
	take(api.Event{Kind: "x", Seq: 5}, true, false)
	take(api.Event{Kind: "x", Seq: 5}, false, false)
	take(api.Event{Kind: "x", Seq: 8}, true, true)
	take(api.Event{Kind: api.EventMissed, Missed: 2}, true, true)
	take(api.Event{Kind: "x", Seq: 11}, true, false)
	take(api.Event{Kind: api.EventJournal, Message: "a", Seq: 20, Missed: 1}, true, true)
	take(api.Event{Kind: "x", Seq: 13, Device: "another"}, true, false)
	take(api.Event{Kind: api.EventJournal, Message: "b", Seq: 1}, true, true)
	take(api.Event{Kind: "x", Seq: 1}, true, false)
	kept, r := ev.subscribe()
	ev.unsubscribe(r)
	missed := uint64(0)
	for _, e := range kept {
		if missed += e.Missed; e.Device != "g" {
			t.Errorf("%+v", e)
		}
	}
	if missed != 2+2+1+1 {
		t.Errorf("%d missed", missed)
	}
}

func TestEventsFollow(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.create("w", "j")
	follow, stop := context.WithCancel(ctx)
	got := make(chan api.Event, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- f.c.Events(follow, api.EventsQuery{Follow: true, Device: "v"}, func(e api.Event) error { got <- e; return nil })
	}()
	waitFor(t, "the reader", func() bool {
		f.m.events.mu.Lock()
		defer f.m.events.mu.Unlock()
		return len(f.m.events.readers) == 1
	})
	f.h.server("w").event("x", "")
	f.h.server("v").event(api.EventParked, "it is")
	for e := range got {
		if e.Device != "v" {
			t.Errorf("%+v", e)
		}
		if e.Kind == api.EventParked && e.Message == "it is" {
			break
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, follow := range []bool{false, true} {
		wantCode(t, f.c.Events(ctx, api.EventsQuery{Device: "u", Follow: follow}, func(api.Event) error { return nil }), api.CodeNotFound)
	}
}

// TestSlowReader: one who doesn't read is told how much it missed, and holds nobody up.
func TestSlowReader(t *testing.T) {
	var l eventLog
	_, r := l.subscribe()
	for range maxKept + maxPending {
		l.add(api.Event{Kind: "x"})
	}
	if n := r.missed.Load(); n != maxKept {
		t.Errorf("missed %d, want %d", n, maxKept)
	}
	kept, other := l.subscribe()
	if len(kept) > maxKept || len(kept) < maxKept/2 {
		t.Errorf("%d kept", len(kept))
	}
	l.unsubscribe(r)
	l.unsubscribe(other)
	if len(l.readers) != 0 {
		t.Errorf("%d readers", len(l.readers))
	}
}
