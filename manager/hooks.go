package manager

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"

	"holdfast/api"
)

// hooksQueued is how many of a device's hooks wait while one runs (the oldest are dropped).
const hooksQueued = 8

// hooks runs the programs that are to be told of standby, each device's one after the other. What
// each was told last is in hooks.json, so that after the manager's death none is told twice, but
// for one that was being started at that very moment, and none is left out.
type hooks struct {
	path, boot, runDir string
	log                zerolog.Logger
	emit               func(name, kind, format string, args ...any)

	fileMu sync.Mutex // of hooks.json
	mu     sync.Mutex
	told   map[string]hookState
	queues map[string]*hookQueue
}

// hookState is what a device's hooks were run for last.
type hookState struct {
	position        // the event
	State    string `json:"state"` // on or off: in standby or not
}

type hooksFile struct {
	BootID  string               `json:"boot_id"`
	Devices map[string]hookState `json:"devices"`
}

// hookQueue are the programs of one device.
type hookQueue struct {
	instance string // of the journal
	last     string // the state after what is queued; "": not known
	settle   uint64 // events are lost: the state counts after this event; 0: none are
	settled  string // by that it was told of this, of which an event may come yet
	waiting  []hook
	running  bool
}

// hook is one run of a program.
type hook struct {
	path string
	env  []string
	told hookState
}

func newHooks(path, boot, runDir string, log zerolog.Logger, emit func(name, kind, format string, args ...any)) *hooks {
	h := &hooks{path: path, boot: boot, runDir: runDir, log: log, emit: emit, told: map[string]hookState{}, queues: map[string]*hookQueue{}}
	var f hooksFile
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn().Err(err).Str("file", path).Msg("what hooks were told is not known: some may be told once more")
	}
	if err == nil && f.BootID == boot && f.Devices != nil {
		h.told = f.Devices
	}
	return h
}

// queue is a device's; mu is held.
func (h *hooks) queue(name string) *hookQueue {
	q := h.queues[name]
	if q == nil {
		q = &hookQueue{last: h.told[name].State}
		h.queues[name] = q
	}
	return q
}

// take has what an event says told. A reader of the journal calls it with one event after the
// other; gap: events before this one are lost; at is how far the journal was read with it.
func (h *hooks) take(p *peer, e api.Event, gap bool, at uint64) {
	h.mu.Lock()
	q := h.queue(p.name)
	if e.Kind == api.EventJournal {
		q.instance = e.Message
	}
	if gap {
		// What was lost may have been about standby; after the events that the journal has yet, the
		// state tells.
		q.settle = max(at, 1)
		if e.Kind == api.EventJournal {
			q.settle = max(e.Seq, 2) - 1
		}
	}
	told := h.told[p.name]
	state := stateAfter(e.Kind)
	fresh := state != "" && !(told.Instance == q.instance && e.Seq <= told.Seq) && state != q.settled
	if state != "" {
		q.settled = ""
	}
	if fresh {
		q.last = state
	}
	settles := q.settle > 0 && max(at, 1) >= q.settle
	if settles {
		q.settle = 0
	}
	last, now := q.last, hookState{position{Instance: q.instance, Seq: e.Seq}, state}
	h.mu.Unlock()
	if fresh {
		h.add(p, e, now)
	}
	if settles {
		now.Seq = at
		h.settle(p, last, now)
	}
}

// stateAfter is whether a device is in standby after an event of a kind, "": that doesn't say.
func stateAfter(kind string) string {
	switch kind {
	case api.EventStandby:
		return "on"
	case api.EventResumed, api.EventCleared:
		return "off"
	}
	return ""
}

// settle tells the hook what the device is in, if that isn't what was told last.
func (h *hooks) settle(p *peer, last string, at hookState) {
	dev := p.current(p.all.alive)
	if dev == nil || dev.Server == nil || dev.Server.State != api.ServerUp {
		h.mu.Lock()
		h.queue(p.name).settle = 1 // with the next event
		h.mu.Unlock()
		return
	}
	state, kind := "off", api.EventResumed
	if dev.State == api.StateStandby || dev.State == api.StateFailing {
		state, kind = "on", api.EventStandby
	}
	if state == last || last == "" && state == "off" {
		return
	}
	h.mu.Lock()
	q := h.queue(p.name)
	q.last, q.settled = state, state
	h.mu.Unlock()
	at.State = state
	h.add(p, api.Event{Device: p.name, Kind: kind, Message: dev.Standby.Cause, Seq: at.Seq}, at)
}

// hookOf is the program that a spec has for an event; "": none.
func hookOf(spec *api.Spec, kind string) string {
	switch kind {
	case api.EventStandby:
		return spec.OnStandby
	case api.EventResumed:
		return spec.OnResumed
	}
	return ""
}

// add has the device's hook for an event run, soon and elsewhere.
func (h *hooks) add(p *peer, e api.Event, told hookState) {
	rec, _, err := p.all.records.ReadOne(p.name)
	if err != nil || rec == nil {
		return
	}
	path := hookOf(&rec.Spec, e.Kind)
	if path == "" {
		return
	}
	st := new(api.Status)
	if dev := p.current(p.all.alive); dev != nil {
		st = &dev.Status
	}
	run := hook{path, append(os.Environ(),
		"HOLDFAST_DEVICE="+p.name, "HOLDFAST_EVENT="+e.Kind, "HOLDFAST_STATE="+told.State,
		"HOLDFAST_PATH="+st.Path, "HOLDFAST_IMAGE="+rec.Spec.Images[len(rec.Spec.Images)-1].Path,
		"HOLDFAST_CAUSE="+e.Message, "HOLDFAST_ERRNO="+st.Standby.Errno,
		"HOLDFAST_HELD="+strconv.FormatInt(st.Standby.Held, 10), "HOLDFAST_RUN_DIR="+h.runDir), told}
	h.mu.Lock()
	defer h.mu.Unlock()
	q := h.queue(p.name)
	if len(q.waiting) == hooksQueued {
		q.waiting = q.waiting[1:]
	}
	q.waiting = append(q.waiting, run)
	if !q.running {
		q.running = true
		go h.work(p.name, q)
	}
}

// work runs a device's hooks until none waits.
func (h *hooks) work(name string, q *hookQueue) {
	for {
		h.mu.Lock()
		if len(q.waiting) == 0 {
			q.running = false
			h.mu.Unlock()
			return
		}
		next := q.waiting[0]
		h.mu.Unlock()
		err := execute(h.log, name, next, func() { h.started(name, q, next.told) })
		if err != nil {
			h.emit(name, api.EventHookFailed, "hook %q: %v", next.path, err)
		}
	}
}

// started records that a program was started, or could not be: it is not told of that again.
func (h *hooks) started(name string, q *hookQueue, told hookState) {
	h.mu.Lock()
	if len(q.waiting) > 0 && q.waiting[0].told == told {
		q.waiting = q.waiting[1:]
	}
	h.told[name] = told
	h.mu.Unlock()
	h.save()
}

// floor is the first event of a device of which a hook is yet to be told, 0: there is none.
func (h *hooks) floor(name string) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if q := h.queues[name]; q != nil && len(q.waiting) > 0 {
		return q.waiting[0].told.Seq
	}
	return 0
}

// forget is for a device that is gone. What runs goes on.
func (h *hooks) forget(name string) {
	h.mu.Lock()
	_, known := h.told[name]
	delete(h.told, name)
	delete(h.queues, name)
	h.mu.Unlock()
	if known {
		h.save()
	}
}

func (h *hooks) save() {
	h.fileMu.Lock()
	defer h.fileMu.Unlock()
	h.mu.Lock()
	b, err := json.Marshal(hooksFile{h.boot, h.told})
	h.mu.Unlock()
	if err == nil {
		err = renameio.WriteFile(h.path, b, 0o600, renameio.WithTempDir(filepath.Dir(h.path)))
	}
	if err != nil {
		h.log.Warn().Err(err).Msg("what hooks were told could not be recorded")
	}
}
