package control

import "time"

// A Pulse is what a watchdog wants to know of the daemon. Taking one costs next to
// nothing and waits for nobody, but for the table's lock: if that is never given back, the
// daemon is dead in all but name, and a watchdog that starves is right.
type Pulse struct {
	Live  int // devices that are served
	Other int // devices that are known and not served: lost, being made, recovered or removed
	// Unanswered is the longest time for which a queue of a served device has
	// owed a sign of life, and Device the name of that device.
	Unanswered time.Duration
	Device     string
	Stopping   bool
}

// Pulse looks at every device, and asks its queues for the next sign of life. A device
// that is being removed doesn't count: its queues end.
func (d *Daemon) Pulse() Pulse {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := Pulse{Stopping: d.stopping}
	for _, s := range d.slots {
		switch {
		case s.rec == nil:
		case s.dev == nil || s.phase != "":
			p.Other++
		default:
			p.Live++
			if t := s.dev.Unanswered(); t > p.Unanswered {
				p.Unanswered, p.Device = t, s.name
			}
		}
	}
	return p
}
