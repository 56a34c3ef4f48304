package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/standby"
	"holdfast/state"
)

// fakeServer is a server's side of what it has in common with a manager, without a device. Its
// standby is the real state machine.
type fakeServer struct {
	h           *fakeHost
	name, build string
	pid         int
	instance    string
	over        chan struct{} // closed by its end
	once        sync.Once
	http        *http.Server
	lock        *state.DeviceLock
	key         *state.Key
	sw          *standby.Switch

	mu      sync.Mutex
	rec     *state.Record
	machine *standby.Device // nil: not served
	hold    chan struct{}   // what is asked waits for it
	ring    []api.Event
	last    uint64
	lost    uint64 // of the ring's beginning
	more    chan struct{}
	leave   error // to leave
	refuse  error // any command
	came    int   // requests
	making  bool  // the device is being created
}

func newFakeServer(h *fakeHost, name string, pid int, binary string) *fakeServer {
	build := "first"
	if binary != "" {
		build = filepath.Base(binary)
	}
	return &fakeServer{h: h, name: name, pid: pid, build: build, over: make(chan struct{}), more: make(chan struct{})}
}

// live is a server's beginning, which ends when it answers.
func (s *fakeServer) live() {
	dir := string(state.Run(s.h.run).Device(s.name))
	waits, cancel := context.WithCancel(ctx)
	go func() { <-s.over; cancel() }()
	lock, err := state.LockDevice(waits, s.h.run, s.name, nil)
	if err != nil {
		s.finish(1)
		return
	}
	// Of a process of its own.
	if f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_WRONLY, 0); err == nil {
		f.WriteAt(fmt.Appendf(nil, "%-10d\n", s.pid), 0)
		f.Close()
	}
	s.mu.Lock()
	s.lock = lock
	s.mu.Unlock()
	if s.key, err = state.OpenKey(s.h.run, zerolog.Nop()); err != nil {
		s.h.t.Error(err)
		s.finish(0)
		return
	}
	s.sw = standby.NewSwitch(s.key)
	s.load()
	sock := filepath.Join(dir, "sock")
	os.Remove(sock)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		s.h.t.Error(err)
		s.finish(0)
		return
	}
	l.SetUnlinkOnClose(false)
	s.mu.Lock()
	s.http = &http.Server{Handler: s.handler()}
	s.mu.Unlock()
	select {
	case <-s.over:
		l.Close()
		return
	default:
	}
	s.http.Serve(l)
}

// load reads what the server before has left: the record, and the journal's file.
func (s *fakeServer) load() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var j fakeJournal
	if b, err := os.ReadFile(s.journalFile()); err == nil && json.Unmarshal(b, &j) == nil {
		s.instance, s.ring, s.last, s.lost = j.Instance, j.Ring, j.Last, j.Lost
	} else {
		s.instance = fmt.Sprintf("%s-%d", s.name, s.pid)
	}
	rec, _, err := s.h.records().ReadOne(s.name)
	if err != nil || rec == nil {
		return
	}
	s.rec = rec
	there := s.h.hasDisk(rec)
	if !there && !rec.Spec.Persist {
		return // lost
	}
	if !there {
		rec.ID = s.h.addDisk(rec.Tag)
	}
	rec.BootID, rec.PID, rec.Closed = s.h.boot, s.pid, false
	if err := s.h.records().Save(rec); err != nil {
		s.h.t.Error(err)
	}
	s.serve()
}

// serve has the device be live. mu is held.
func (s *fakeServer) serve() {
	s.machine = standby.NewDevice(s.sw, standby.Options{})
	for _, c := range append(slices.Clone(s.rec.Leases), s.rec.TargetLeases...) {
		s.machine.Attach(c)
	}
	if r := s.rec.Standby; r != nil {
		s.machine.Restore(standby.Restored{ByHand: r.ByHand, Cause: r.Cause, Since: r.Since})
	}
}

type fakeJournal struct {
	Instance   string
	Ring       []api.Event
	Last, Lost uint64
}

func (s *fakeServer) journalFile() string {
	return filepath.Join(string(state.Run(s.h.run).Device(s.name)), "events")
}

// event adds one to the journal.
func (s *fakeServer) event(kind, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eventLocked(kind, message)
}

func (s *fakeServer) eventLocked(kind, message string) {
	s.last++
	s.ring = append(s.ring, api.Event{Time: time.Now(), Device: s.name, Kind: kind, Message: message, Seq: s.last})
	b, _ := json.Marshal(fakeJournal{s.instance, s.ring, s.last, s.lost})
	os.WriteFile(s.journalFile(), b, 0o600)
	close(s.more)
	s.more = make(chan struct{})
}

// lose forgets all events that there are.
func (s *fakeServer) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost, s.ring = s.last, nil
}

// finish ends the process: its sockets and its lock go.
func (s *fakeServer) finish(code int) {
	s.once.Do(func() {
		close(s.over)
		s.mu.Lock()
		srv, lock := s.http, s.lock
		s.mu.Unlock()
		if srv != nil {
			srv.Close()
		}
		if lock != nil {
			lock.Release()
		}
		s.h.ended(s, code)
	})
}

// end is for the test's end.
func (s *fakeServer) end() {
	s.h.set(func() { s.h.wanted[s.name] = false })
	s.answer()
	s.finish(0)
}

// kill ends it as SIGKILL does.
func (s *fakeServer) kill() {
	s.answer()
	s.finish(-9)
}

// silence has it not answer any more.
func (s *fakeServer) silence() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hold == nil {
		s.hold = make(chan struct{})
	}
}

func (s *fakeServer) listens() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.http != nil
}

// requests are how many have come.
func (s *fakeServer) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.came
}

func (s *fakeServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// answer ends a silence.
func (s *fakeServer) answer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hold != nil {
		close(s.hold)
	}
	s.hold = nil
}

// terminate ends it in order, once nobody uses the device.
func (s *fakeServer) terminate() {
	for {
		s.h.mu.Lock()
		used := len(s.h.inUse[s.name]) > 0
		s.h.mu.Unlock()
		if !used {
			break
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-s.over:
			return
		}
	}
	s.mu.Lock()
	s.gone(s.rec != nil && s.rec.Spec.Persist)
	s.mu.Unlock()
	s.finish(0)
}

// gone takes the device away. mu is held.
func (s *fakeServer) gone(keep bool) {
	if s.rec == nil {
		return
	}
	s.h.set(func() { delete(s.h.disks, s.rec.ID) })
	s.machine = nil
	if keep {
		s.rec.Closed = true
		s.h.records().Save(s.rec)
		return
	}
	if err := s.h.records().Remove(s.name); err != nil {
		s.h.t.Error(err)
	}
	s.rec = nil
}

func (s *fakeServer) id() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec == nil || s.machine == nil {
		return -1
	}
	return s.rec.ID
}

// device is what it says of the device.
func (s *fakeServer) device() *api.Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deviceLocked()
}

func (s *fakeServer) deviceLocked() *api.Device {
	if s.making {
		return &api.Device{Status: api.Status{Name: s.name, ID: -1, State: api.StateCreating, Images: []ploop.ImageStatus{}}, Users: []api.User{}, Events: []api.Event{}}
	}
	if s.rec == nil {
		return nil
	}
	if s.machine == nil {
		d := &api.Device{Status: s.rec.Offline(), Created: s.rec.Created, Users: []api.User{}, Events: []api.Event{}}
		d.State = api.StateLost
		return d
	}
	d := &api.Device{Status: s.rec.Waiting(api.StateLive, s.sw.On()), Created: s.rec.Created, Persist: s.rec.Spec.Persist, Users: []api.User{}, Events: slices.Clone(s.ring[max(0, len(s.ring)-16):])}
	m := s.machine.Status()
	d.Standby = api.StandbyStatus{Value: m.Value(), Enabled: m.Enabled, Flag: m.Flag, Consumers: m.Consumers, Cause: m.Cause, ByHand: m.ByHand, Tags: 128, Resume: api.ResumeManual}
	if m.Flag && m.Supported {
		d.State, d.Since, d.Standby.Since = api.StateStandby, m.Since, &m.Since
	}
	d.Size = 1 << 30
	api.Advise(d)
	return d
}
