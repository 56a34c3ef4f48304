package control

import (
	"errors"
	"testing"
	"time"

	"holdfast/api"
)

// TestEndDuringRecovery: users of a device that waits for its recovery can't let go before it is
// served again, so the end of the daemon waits for both.
func TestEndDuringRecovery(t *testing.T) {
	begin := func(users ...api.User) *fixture {
		f := newFixture(t)
		f.create("v", "i")
		f.die()
		f.k.mu.Lock()
		f.k.leftUsers = users
		f.k.mu.Unlock()
		f.setOpenErr(errors.New("not today"))
		f.start()
		f.eventually("v", api.StateRecovering)
		return f
	}
	waiting := func(f *fixture) int {
		f.k.mu.Lock()
		defer f.k.mu.Unlock()
		return len(f.k.waiting)
	}
	t.Run("in use", func(t *testing.T) {
		f := begin(mounted)
		_, done := f.shutdown()
		select {
		case err := <-done:
			t.Fatalf("did not wait: %v", err)
		case <-time.After(10 * f.d.poll):
		}
		f.k.setUsers("v", mounted) // once it lives
		f.setOpenErr(nil)
		f.eventually("v", "live")
		f.k.setUsers("v")
		if err := <-done; err != nil || len(f.recorded()) != 0 || waiting(f) != 0 {
			t.Errorf("%v, records %q, %d left", err, f.recorded(), waiting(f))
		}
	})
	t.Run("by force", func(t *testing.T) {
		f := begin(mounted)
		force, done := f.shutdown()
		time.Sleep(3 * f.d.poll)
		close(force)
		// Its images were not closed: the record is needed.
		if err := <-done; err != nil || len(f.recorded()) != 1 || waiting(f) != 0 {
			t.Errorf("%v, records %q, %d left", err, f.recorded(), waiting(f))
		}
	})
	t.Run("idle", func(t *testing.T) {
		f := begin()
		_, done := f.shutdown()
		if err := <-done; err != nil || len(f.recorded()) != 1 || waiting(f) != 1 {
			t.Errorf("%v, records %q, %d left", err, f.recorded(), waiting(f))
		}
	})
}
