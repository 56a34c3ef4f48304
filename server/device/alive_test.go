package device

import (
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ublk"
)

// TestUnanswered: queues that move answer, one that is stuck is seen although the other
// moves, and nobody waits for it.
func TestUnanswered(t *testing.T) {
	ctl := openControl(t)
	d := serve(t, ctl, api.Spec{Name: "alive", Images: makeStack(t, t.TempDir(), 1, 2, 8<<20, 1<<20), Queues: 2})
	// answers asks until no question is out.
	answers := func() {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			d.Unanswered()
			time.Sleep(5 * time.Millisecond)
			d.liveness.mu.Lock()
			out := !d.liveness.asked.IsZero()
			d.liveness.mu.Unlock()
			if !out {
				return
			}
			if time.Now().After(end) {
				t.Fatal("the queues don't answer")
			}
		}
	}
	answers()
	answers()

	stuck, hold := make(chan struct{}), make(chan struct{})
	queues := d.dev.Queues() // as many as there are processors, at most
	if err := queues[len(queues)-1].Post(func() { close(stuck); <-hold }); err != nil {
		t.Fatal(err)
	}
	<-stuck
	last := d.Unanswered()
	for range 5 {
		time.Sleep(20 * time.Millisecond)
		now := d.Unanswered()
		if now < last+20*time.Millisecond {
			t.Errorf("a stuck queue owes its answer for %v, and 20 ms later for %v", last, now)
		}
		last = now
	}
	close(hold)
	answers()

	// One that has been stopped owes nothing.
	if err := d.dev.OnQueues(func(*ublk.Queue) {}); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	answers()
}
