package server

import (
	"context"
	"testing"
	"time"

	"holdfast/api"
)

// TestWaitEnds: a wait whose server ends is told so.
func TestWaitEnds(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	s := h.server("v")
	h.k.set(func() { h.k.asked = 0 })
	lost := h.wait("v", api.StateLost)
	waitFor(t, "the wait", func() bool { h.k.mu.Lock(); defer h.k.mu.Unlock(); return h.k.asked > 0 })
	if err := s.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	wantCode(t, h.inTime(lost).err, api.CodeStopping)
	h.exits("v")
}

// TestWaitAsksLittle: however many wait, a device that does nothing is asked for its state once
// a second by each at most, and nobody looks for users.
func TestWaitAsksLittle(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	begin := time.Now()
	h.k.set(func() { h.k.asked, h.k.scans = 0, 0 })
	ended, cancel := context.WithCancel(ctx)
	done := make(chan struct{}, 10)
	for range cap(done) {
		go func() { h.Wait(ended, "v", []string{api.StateLost}); done <- struct{}{} }()
	}
	time.Sleep(300 * time.Millisecond)
	cancel()
	for range cap(done) {
		<-done
	}
	h.k.mu.Lock()
	defer h.k.mu.Unlock()
	most := cap(done) * (2 + int(time.Since(begin)/waitPeriod))
	if h.k.asked > most || h.k.scans != 0 {
		t.Errorf("asked for the state %d times (at most %d), for users %d times", h.k.asked, most, h.k.scans)
	}
}
