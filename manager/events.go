package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"

	"holdfast/api"
)

// events are those of all devices and of the manager itself, and how far each server's journal was
// read. Nothing that a server tells is lost: it is asked for what comes behind the last number,
// after the manager's own death, too; and where a journal has lost something, that is an event.
type events struct {
	eventLog
	path  string // of the positions
	boot  string
	every time.Duration // they are saved
	log   zerolog.Logger
	floor func(name string) uint64 // the first event that is yet to be handled; 0: none is

	posMu sync.Mutex
	pos   map[string]*position
	dirty bool
}

// position is how far a journal was read, by this manager or one before it.
type position struct {
	Instance string `json:"instance"`
	Seq      uint64 `json:"seq"`
	done     uint64 // of these, those that hooks have been given
	read     uint64 // how far this manager has read it: the ones before Seq are listed, and news to nobody
}

type positionsFile struct {
	BootID  string              `json:"boot_id"`
	Devices map[string]position `json:"devices"`
}

// newEvents goes on where the manager before has stopped.
func newEvents(path, boot string, every time.Duration, log zerolog.Logger) *events {
	ev := &events{path: path, boot: boot, every: every, log: log, floor: func(string) uint64 { return 0 }, pos: map[string]*position{}}
	var f positionsFile
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn().Err(err).Str("file", path).Msg("how far events were read is not known: those that servers have yet are told once more")
	}
	if err == nil && f.BootID == boot {
		for name, p := range f.Devices {
			p.done = p.Seq
			ev.pos[name] = &p
		}
	}
	return ev
}

// position says what to ask a device's server for.
func (ev *events) position(name string) api.JournalQuery {
	ev.posMu.Lock()
	defer ev.posMu.Unlock()
	if p := ev.pos[name]; p != nil {
		return api.JournalQuery{Instance: p.Instance, Since: p.read}
	}
	return api.JournalQuery{}
}

// taken is what became of an event.
type taken struct {
	fresh bool   // nobody has been told of it
	known bool   // a manager before this one has told of it: it is only listed
	gap   bool   // events before it are lost
	at    uint64 // how far the journal was read then
}

// take adds an event that a server has told.
func (ev *events) take(name string, e api.Event) taken {
	e.Device = name
	lost, known, at := ev.advance(name, &e)
	if lost > 0 {
		ev.add(api.Event{Time: time.Now(), Device: name, Kind: api.EventMissed, Missed: lost, Message: fmt.Sprintf("%d events of the device are lost", lost)})
	}
	switch {
	case e.Seq == 0 || e.Kind == api.EventJournal || e.Kind == api.EventMissed:
		return taken{fresh: lost > 0, gap: lost > 0, at: at}
	case known:
		ev.insert(e)
		return taken{known: true, at: at}
	}
	ev.add(e)
	return taken{fresh: true, gap: lost > 0, at: at}
}

// advance moves a device's position past an event, and says how many before it are lost. known: a
// manager before this one has had the event. One that this manager has had itself loses its number.
func (ev *events) advance(name string, e *api.Event) (lost uint64, known bool, at uint64) {
	ev.posMu.Lock()
	defer ev.posMu.Unlock()
	p := ev.pos[name]
	if p == nil {
		p = &position{}
		ev.pos[name] = p
	}
	ev.dirty = true
	switch {
	case e.Kind == api.EventJournal && e.Message != p.Instance:
		// Another journal. How much is lost of the one before is not known; of this one all that it
		// doesn't have, but to a manager that is new to the device.
		if p.Instance != "" {
			lost = max(e.Missed, 1)
		}
		*p = position{Instance: e.Message, Seq: e.Missed, read: e.Missed}
	case e.Kind == api.EventJournal || e.Kind == api.EventMissed:
		lost = p.skip(p.read + e.Missed)
	case e.Seq == 0:
	case e.Seq <= p.read:
		e.Seq = 0
	default:
		lost = p.skip(e.Seq - 1)
		known = e.Seq <= p.Seq
		p.read, p.Seq = e.Seq, max(p.Seq, e.Seq)
	}
	return lost, known, p.Seq
}

// skip says how many events up to a number are lost, when none of them is told any more.
func (p *position) skip(to uint64) (lost uint64) {
	if to > p.Seq {
		lost = to - p.Seq
		p.Seq = to
	}
	p.read = max(p.read, to)
	return lost
}

// handled says that all events that were taken of a device have been given to its hooks.
func (ev *events) handled(name string) {
	ev.posMu.Lock()
	defer ev.posMu.Unlock()
	if p := ev.pos[name]; p != nil && p.done != p.Seq {
		p.done, ev.dirty = p.Seq, true
	}
}

// forget is for a device that is gone. Its events are kept.
func (ev *events) forget(name string) {
	ev.posMu.Lock()
	defer ev.posMu.Unlock()
	delete(ev.pos, name)
	ev.dirty = true
}

// run saves the positions from time to time, and at the end.
func (ev *events) run(ctx context.Context) {
	tick := time.NewTicker(ev.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			ev.save()
		case <-ctx.Done():
			ev.save()
			return
		}
	}
}

// save records how far the journals were read, and what came of it was done: what is told twice
// after a death is not seen by anybody who was told before it.
func (ev *events) save() {
	ev.posMu.Lock()
	if !ev.dirty {
		ev.posMu.Unlock()
		return
	}
	ev.dirty = false
	f := positionsFile{ev.boot, map[string]position{}}
	for name, p := range ev.pos {
		f.Devices[name] = position{Instance: p.Instance, Seq: min(p.Seq, p.done)}
	}
	ev.posMu.Unlock()
	for name, p := range f.Devices {
		if first := ev.floor(name); first > 0 && first <= p.Seq {
			p.Seq = first - 1
			f.Devices[name] = p
			ev.posMu.Lock()
			ev.dirty = true
			ev.posMu.Unlock()
		}
	}
	b, err := json.Marshal(f)
	if err == nil {
		err = renameio.WriteFile(ev.path, b, 0o600, renameio.WithTempDir(filepath.Dir(ev.path)))
	}
	if err != nil {
		ev.log.Warn().Err(err).Msg("how far events were read could not be recorded")
	}
}

// emit logs an event of the manager's own, and adds it.
func (ev *events) emit(name, kind, format string, args ...any) {
	e := newEvent(name, kind, fmt.Sprintf(format, args...))
	ev.log.Info().Str("event", kind).Str("device", name).Msg(e.Message)
	ev.add(e)
}

func newEvent(name, kind, message string) api.Event {
	return api.Event{Time: time.Now(), Device: name, Kind: kind, Message: message}
}
