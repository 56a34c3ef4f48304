package ublk

import "golang.org/x/sys/unix"

// early stands in for the handler of a queue between Recover and Start. A queue whose
// tags are all fetched gets the requests that are new from then on, whatever
// END_USER_RECOVERY is for (seen on Linux 7.2 and 7.3; 6.12 waits for it): they wait here.
type early struct{ requests []*Request }

var _ Handler = (*early)(nil)

// Begin keeps a request for the handler.
func (e *early) Begin(r *Request) { e.requests = append(e.requests, r) }

// Transferred is not called: nothing is begun.
func (e *early) Transferred(*Request, unix.Errno) { panic("ublk: no transfer was begun") }

// admit gives the handler what came early, and from then on what comes. A queue that has
// ended has nothing to give.
func (d *Device) admit() {
	for _, q := range d.queues {
		_ = q.Post(func() {
			e, ok := q.handler.(*early)
			if !ok {
				return
			}
			q.handler = d.handler
			for _, r := range e.requests {
				d.handler.Begin(r)
			}
		})
	}
}
