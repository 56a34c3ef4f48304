package control

import (
	"context"
	"testing"

	"holdfast/api"
)

// Storage that hangs keeps the name's token for a time only, and one goroutine however
// often it is asked.
func TestLookIsBounded(t *testing.T) {
	s := new(slot)
	short, cancel := context.WithCancel(ctx)
	cancel()
	hang, did := make(chan struct{}), make(chan struct{})
	if err := s.look(short, func() error { <-hang; close(did); return nil }); api.CodeOf(err) != api.CodeImage {
		t.Errorf("a look that hangs: %v", err)
	}
	for range 3 {
		if err := s.look(ctx, func() error { t.Error("a second one"); return nil }); api.CodeOf(err) != api.CodeImage {
			t.Errorf("the next: %v", err)
		}
	}
	close(hang)
	<-did
	waitFor(t, "a look", func() bool { return s.look(ctx, func() error { return nil }) == nil })
}

// A persistent device whose storage hangs holds up neither an upgrade nor the daemon's end.
func TestHangingPersistentDevice(t *testing.T) {
	f := newFixture(t)
	f.persistent("a")
	f.create("b", "b")
	f.stop()
	f.setOpenErr(context.DeadlineExceeded)
	f.start()
	f.eventually("a", api.StateWaiting)
	f.d.mu.Lock()
	s := f.d.slots["a"]
	spec := s.rec.Spec
	f.d.mu.Unlock()
	waitFor(t, "that it hangs", func() bool { return s.looking.CompareAndSwap(false, true) })
	if _, err := f.d.Create(ctx, spec); api.CodeOf(err) != api.CodeImage {
		t.Errorf("create: %v", err)
	}
	if _, err := f.c.Upgrade(ctx, f.heir("echo serving 0 >&4; exec sleep 1")); err != nil {
		t.Errorf("upgrade: %v", err)
	}
}
