package cond

import "testing"

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// TestCond: a broadcast wakes all who wait, and nobody who begins to wait after it.
func TestCond(t *testing.T) {
	var c Cond
	c.Broadcast() // nobody waits
	one, two := c.Next(), c.Next()
	if closed(one) || closed(two) {
		t.Fatal("woken before the broadcast")
	}
	c.Broadcast()
	if !closed(one) || !closed(two) {
		t.Error("not woken by the broadcast")
	}
	three := c.Next()
	if closed(three) {
		t.Error("woken by a broadcast of before")
	}
	c.Broadcast()
	if !closed(three) {
		t.Error("not woken by the second broadcast")
	}
}
