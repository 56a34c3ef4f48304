package control

import (
	"testing"
	"time"

	"holdfast/api"
)

func TestPulse(t *testing.T) {
	f := newFixture(t)
	if p := f.d.Pulse(); p != (Pulse{}) {
		t.Errorf("without devices: %+v", p)
	}
	for _, name := range []string{"a", "b", "c"} {
		f.create(name, name)
	}
	f.k.mu.Lock()
	f.k.live["a"].unanswered, f.k.live["b"].unanswered = time.Second, 3*time.Second
	f.k.mu.Unlock()
	if p := f.d.Pulse(); p != (Pulse{Live: 3, Unanswered: 3 * time.Second, Device: "b"}) {
		t.Errorf("with one that is stuck: %+v", p)
	}
	// One on its way out owes nothing, although its removal takes its time.
	hold := make(chan struct{})
	f.k.mu.Lock()
	f.k.closeHold = map[string]chan struct{}{"b": hold}
	f.k.mu.Unlock()
	removed := make(chan error, 1)
	go func() { removed <- f.c.Remove(ctx, "b", true) }()
	waitFor(t, "the removal's begin", func() bool { return f.states()["b"] == api.StateRemoving })
	if p := f.d.Pulse(); p != (Pulse{Live: 2, Other: 1, Unanswered: time.Second, Device: "a"}) {
		t.Errorf("during a removal: %+v", p)
	}
	close(hold)
	if err := <-removed; err != nil {
		t.Fatal(err)
	}
}
