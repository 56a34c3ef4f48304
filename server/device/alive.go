package device

import (
	"sync"
	"time"

	"holdfast/ublk"
)

// liveness is a question to all queues, one at a time.
type liveness struct {
	mu    sync.Mutex
	asked time.Time // when the question went out; zero: none is out
}

// Unanswered says for how long the device's queues have owed a sign of life, and asks
// them for the next one if they owe none. It never blocks, so whoever feeds a
// watchdog can call it for every device: a queue that moves answers long before
// the next call, and one that is stuck shows by a time that grows from call to call.
//
// A queue's thread does nothing that waits for storage, so a device whose requests hang, are
// held or are parked still answers. A device that has been stopped owes nothing.
func (d *Device) Unanswered() time.Duration {
	p := &d.liveness
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.asked.IsZero() {
		return time.Since(p.asked)
	}
	p.asked = time.Now()
	go func() {
		// Queues that have ended don't run it, and owe nothing.
		_ = d.dev.OnQueues(func(*ublk.Queue) {})
		p.mu.Lock()
		p.asked = time.Time{}
		p.mu.Unlock()
	}()
	return 0
}
