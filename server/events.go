package server

import (
	"fmt"
	"sync"
	"time"

	"holdfast/api"
)

// Failed requests can come by the thousands a second; only the first so many in each
// period are events, or nothing else would be found among them. Figures have them all.
const (
	ioErrorBurst  = 5
	ioErrorPeriod = 10 * time.Second
)

// errorRate counts failed requests.
type errorRate struct {
	mu    sync.Mutex
	n     int
	since time.Time
}

// one says whether one more failed request is an event.
func (r *errorRate) one() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.since) > ioErrorPeriod {
		r.since, r.n = now, 0
	}
	r.n++
	return r.n <= ioErrorBurst
}

// movesStandby are the events after which the record's standby is another.
var movesStandby = map[string]bool{
	api.EventStandby: true, api.EventKept: true, api.EventResumed: true, api.EventCleared: true,
}

// event takes the device's own events, which the device has logged. It must not block.
func (s *Server) event(e api.Event) {
	if e.Kind == api.EventIOError && !s.errors.one() {
		return
	}
	s.journal.Add(e)
	s.mu.Lock()
	if dev := s.dev; dev != nil && movesStandby[e.Kind] && s.alive.Err() == nil {
		s.background.Go(func() { s.ledger.recordStandby(dev) })
	}
	s.mu.Unlock()
	s.changed.Broadcast()
}

// emit logs an event of the server's own, and adds it to the journal.
func (s *Server) emit(kind, format string, args ...any) {
	e := api.Event{Time: time.Now(), Device: s.name, Kind: kind, Message: fmt.Sprintf(format, args...)}
	s.log.Info().Str("event", kind).Msg(e.Message)
	s.journal.Add(e)
	s.changed.Broadcast()
}
