package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/api"
)

// The bounds of what is kept: events for those who ask later, and for each reader
// that follows.
const (
	maxKept    = 4096
	maxPending = 1024
)

// eventLog is the daemon's last events, and those who follow them.
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

func newEvent(name, kind, message string) api.Event {
	return api.Event{Time: time.Now(), Device: name, Kind: kind, Message: message}
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

// follow gives what there is, and a reader of what comes after it.
func (l *eventLog) follow() ([]api.Event, *eventReader) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &eventReader{events: make(chan api.Event, maxPending)}
	if l.readers == nil {
		l.readers = map[*eventReader]struct{}{}
	}
	l.readers[r] = struct{}{}
	return append([]api.Event{}, l.ring...), r
}

func (l *eventLog) leave(r *eventReader) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.readers, r)
}

// tell logs an event of the daemon's own, and adds it.
func (d *Daemon) tell(name, kind, format string, args ...any) {
	e := newEvent(name, kind, fmt.Sprintf(format, args...))
	d.log.Info().Str("event", kind).Str("device", name).Msg(e.Message)
	d.addEvent(e)
}

// addEvent adds an event, which may mean that a device's state is another.
func (d *Daemon) addEvent(e api.Event) {
	d.events.add(e)
	d.changed.ring()
}

// serveEvents answers with one event a line: those that are kept, and with follow=true
// those to come, until the client hangs up.
func (d *Daemon) serveEvents(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	follow := false
	if v := q.Get("follow"); v != "" {
		var err error
		if follow, err = strconv.ParseBool(v); err != nil {
			replyError(w, api.Errorf(api.CodeInvalid, "follow=%q is neither true nor false", v))
			return
		}
	}
	name, err := d.resolve(q.Get("device"))
	if err != nil {
		replyError(w, err)
		return
	}
	kept, reader := d.events.follow()
	defer d.events.leave(reader)
	// One that was removed has events yet.
	if name != "" && d.stateOf(name) == api.StateRemoved && !slices.ContainsFunc(kept, func(e api.Event) bool { return e.Device == name }) {
		replyError(w, api.Errorf(api.CodeNotFound, "there is no device %q, and no event of one", name))
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	send := func(e api.Event) error {
		if name != "" && e.Device != name && e.Kind != api.EventMissed {
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
				if send(newEvent("", api.EventMissed, fmt.Sprintf("%d events came too fast for this reader", n))) != nil {
					return
				}
			}
			if send(e) != nil || flush.Flush() != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-d.closing:
			return
		}
	}
}
