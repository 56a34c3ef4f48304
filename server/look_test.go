package server

import (
	"context"
	"testing"

	"holdfast/api"
)

// Storage that hangs keeps the turn for a time only, and one goroutine however often it is asked.
func TestLookIsBounded(t *testing.T) {
	s := new(Server)
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

// A persistent device whose storage hangs holds up neither an upgrade nor the server's end.
func TestHangingPersistentDevice(t *testing.T) {
	h := newHost(t)
	h.persistent("a")
	h.stop("a")
	h.k.setOpenErr(context.DeadlineExceeded)
	h.eventually("a", api.StateWaiting)
	s := h.server("a")
	waitFor(t, "that it hangs", func() bool { return s.looking.CompareAndSwap(false, true) })
	spec := h.spec("a", "a")
	spec.Persist = true
	_, err := h.Create(ctx, spec)
	wantCode(t, err, api.CodeImage)
	if err := h.Leave(ctx, "a"); err != nil {
		t.Errorf("leave: %v", err)
	}
	h.eventually("a", api.StateWaiting)
	s = h.server("a")
	waitFor(t, "that it hangs", func() bool { return s.looking.CompareAndSwap(false, true) })
	h.stop("a")
}
