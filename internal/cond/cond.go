// Package cond is a condition variable that can be waited for in a select, beside a context or a
// timer: what sync.Cond can't.
package cond

import "sync"

// A Cond wakes everybody who waits for its next broadcast. The zero value is ready, and must not be
// copied once it was used.
//
// Who waits for a condition takes Next before it tests the condition: a broadcast between the two
// is then not missed.
type Cond struct {
	mu sync.Mutex
	ch chan struct{}
}

// Next is closed by the next broadcast.
func (c *Cond) Next() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ch == nil {
		c.ch = make(chan struct{})
	}
	return c.ch
}

// Broadcast wakes all who wait now.
func (c *Cond) Broadcast() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ch != nil {
		close(c.ch)
	}
	c.ch = nil
}
