package manager

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"holdfast/api"
	"holdfast/internal/httpjson"
)

// The bounds of what is kept: events for those who ask later, and for each reader
// that follows.
const (
	maxKept    = 4096
	maxPending = 1024
)

// eventLog is the last events, and those who follow them.
type eventLog struct {
	mu      sync.Mutex
	ring    []api.Event
	readers map[*eventReader]struct{}
}

// eventReader is one who follows. It never holds the others up.
type eventReader struct {
	events chan api.Event
	missed atomic.Uint64
}

func (l *eventLog) add(e api.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ring) == maxKept {
		l.ring = append(l.ring[:0], l.ring[maxKept/8:]...)
	}
	l.ring = append(l.ring, e)
	for r := range l.readers {
		select {
		case r.events <- e:
		default:
			r.missed.Add(1)
		}
	}
}

// insert adds one that somebody was told of before this manager began, where it belongs by its
// time. Those of one device stay in the order in which they come.
func (l *eventLog) insert(e api.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := len(l.ring)
	for i > 0 && l.ring[i-1].Device != e.Device && l.ring[i-1].Time.After(e.Time) {
		i--
	}
	if len(l.ring) < maxKept {
		l.ring = slices.Insert(l.ring, i, e)
	}
}

// subscribe gives what there is, and a reader of what comes after it.
func (l *eventLog) subscribe() ([]api.Event, *eventReader) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &eventReader{events: make(chan api.Event, maxPending)}
	if l.readers == nil {
		l.readers = map[*eventReader]struct{}{}
	}
	l.readers[r] = struct{}{}
	return append([]api.Event{}, l.ring...), r
}

func (l *eventLog) unsubscribe(r *eventReader) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.readers, r)
}

// serveEvents answers with one event a line: those that are kept, and with follow=true
// those to come, until the client hangs up.
func (f *front) serveEvents(w http.ResponseWriter, r *http.Request) {
	follow, ok := httpjson.Truth(w, r, "follow")
	if !ok {
		return
	}
	name, err := f.m.resolve(r.URL.Query().Get("device"))
	if err != nil {
		httpjson.Error(w, err)
		return
	}
	kept, reader := f.m.events.subscribe()
	defer f.m.events.unsubscribe(reader)
	// One that was removed has events yet.
	if name != "" && f.m.peers.get(name) == nil && !slices.ContainsFunc(kept, func(e api.Event) bool { return e.Device == name }) {
		httpjson.Error(w, api.Errorf(api.CodeNotFound, "there is no device %q, and no event of one", name))
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	send := func(e api.Event) error {
		if name != "" && e.Device != name && (e.Kind != api.EventMissed || e.Device != "") {
			return nil
		}
		return enc.Encode(e)
	}
	for _, e := range kept {
		if send(e) != nil {
			return
		}
	}
	if flush.Flush() != nil || !follow {
		return
	}
	for {
		select {
		case e := <-reader.events:
			if n := reader.missed.Swap(0); n > 0 {
				e := newEvent("", api.EventMissed, fmt.Sprintf("%d events came too fast for this reader", n))
				e.Missed = n
				if send(e) != nil {
					return
				}
			}
			if send(e) != nil || flush.Flush() != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-f.m.alive.Done():
			return
		}
	}
}
