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
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/standby"
	"holdfast/state"
)

// fakeServer is a server's side of what it has in common with a manager, without a device. Its standby is
// the real state machine.
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

func (s *fakeServer) handler() http.Handler {
	mux := http.NewServeMux()
	at := "/v1/devices/" + s.name
	mux.HandleFunc("GET /v1", func(w http.ResponseWriter, r *http.Request) {
		reply(w, 200, api.ServerInfo{API: 1, Build: s.build, Instance: s.instance, PID: s.pid, Name: s.name, Phase: "serving"})
	})
	mux.HandleFunc("GET "+at, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("users") != "false" {
			s.h.t.Error("a server was asked for the users of its device")
		}
		s.h.mu.Lock()
		s.h.asked[s.name]++
		gather := s.h.gather
		s.h.mu.Unlock()
		if gather != nil {
			gather.Done()
			gather.Wait()
		}
		s.answerDevice(w)
	})
	mux.HandleFunc("PUT "+at, s.serveCreate)
	mux.HandleFunc("DELETE "+at, s.serveRemove)
	mux.HandleFunc("GET "+at+"/events", s.serveEvents)
	mux.HandleFunc("POST "+at+"/replace", func(w http.ResponseWriter, r *http.Request) {
		var in api.ReplaceRequest
		json.NewDecoder(r.Body).Decode(&in)
		s.mu.Lock()
		s.rec.Spec.Images[len(s.rec.Spec.Images)-1] = in.Image
		s.h.records().Save(s.rec)
		s.eventLocked(api.EventReplaced, "by another")
		s.mu.Unlock()
		s.answerDevice(w)
	})
	mux.HandleFunc("POST "+at+"/recover", func(w http.ResponseWriter, r *http.Request) {
		replyError(w, api.Errorf(api.CodeConflict, "device %q is live", s.name))
	})
	mux.HandleFunc("POST "+at+"/leave", func(w http.ResponseWriter, r *http.Request) {
		if s.leave != nil {
			replyError(w, s.leave)
			return
		}
		w.WriteHeader(204)
		http.NewResponseController(w).Flush()
		go s.finish(75)
	})
	mux.HandleFunc("PUT "+at+"/standby", func(w http.ResponseWriter, r *http.Request) {
		var in api.Switch
		json.NewDecoder(r.Body).Decode(&in)
		if err := s.setStandby(in.On, "by hand"); err != nil {
			replyError(w, err)
			return
		}
		s.answerDevice(w)
	})
	mux.HandleFunc("PUT "+at+"/leases/{consumer}", s.serveLease)
	mux.HandleFunc("DELETE "+at+"/leases/{consumer}", s.serveLease)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.came++
		hold, refuse := s.hold, s.refuse
		s.mu.Unlock()
		if hold != nil {
			select {
			case <-hold:
			case <-r.Context().Done():
				return
			}
		}
		if refuse != nil && r.Method != http.MethodGet {
			replyError(w, refuse)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (s *fakeServer) answerDevice(w http.ResponseWriter) {
	if d := s.device(); d != nil {
		reply(w, 200, d)
		return
	}
	replyError(w, api.Errorf(api.CodeNotFound, "there is no device %q", s.name))
}

func (s *fakeServer) setStandby(on bool, why string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.machine == nil {
		return api.Errorf(api.CodeConflict, "device %q is not served", s.name)
	}
	if !on {
		s.machine.Clear(why)
		s.eventLocked(api.EventResumed, why)
		return nil
	}
	if err := s.machine.Set(); err != nil {
		return api.Errorf(api.CodeNotSupported, "device %q: %w", s.name, err)
	}
	s.eventLocked(api.EventStandby, why)
	return nil
}

func (s *fakeServer) serveCreate(w http.ResponseWriter, r *http.Request) {
	var spec api.Spec
	if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
		replyError(w, api.Errorf(api.CodeInvalid, "%w", err))
		return
	}
	var making chan struct{}
	s.h.set(func() { making = s.h.making })
	if making != nil {
		s.set(func() { s.making = true })
		<-making
		s.set(func() { s.making = false })
	}
	err := s.create(spec)
	if err != nil {
		replyError(w, err)
		http.NewResponseController(w).Flush()
		if s.device() == nil {
			go s.finish(0) // it has nothing to do
		}
		return
	}
	reply(w, 201, s.device())
}

func (s *fakeServer) create(spec api.Spec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.machine != nil {
		return api.Errorf(api.CodeExists, "device %q exists already", s.name)
	}
	rec := &state.Record{Spec: spec, BootID: s.h.boot, PID: s.pid, Created: time.Now(), Images: make([]state.ImageID, len(spec.Images))}
	for i, image := range spec.Images {
		if _, err := os.Stat(image.Path); err != nil {
			return api.Errorf(api.CodeImage, "image %q: %w", image.Path, err)
		}
		rec.Images[i].Ino = uint64(i)
	}
	if s.rec != nil {
		rec.Leases, rec.Serial = s.rec.Leases, s.rec.Serial
	}
	rec.Tag = state.NewTag(s.h.stateDir, s.name, rec.Created)
	rec.ID = s.h.addDisk(rec.Tag)
	if err := s.h.records().Save(rec); err != nil {
		return err
	}
	s.rec = rec
	s.serve()
	s.eventLocked(api.EventCreated, "it is")
	return nil
}

func (s *fakeServer) serveRemove(w http.ResponseWriter, r *http.Request) {
	force, _ := strconv.ParseBool(r.URL.Query().Get("force"))
	s.h.mu.Lock()
	users := s.h.inUse[s.name]
	s.h.mu.Unlock()
	if len(users) > 0 && !force {
		e := api.Errorf(api.CodeBusy, "device %q is in use", s.name)
		e.Users = users
		replyError(w, e)
		return
	}
	s.mu.Lock()
	s.eventLocked(api.EventRemoved, "it is")
	s.gone(false)
	s.mu.Unlock()
	w.WriteHeader(204)
	http.NewResponseController(w).Flush()
	go func() {
		time.Sleep(5 * time.Millisecond) // for who reads its events
		s.finish(0)
	}()
}

func (s *fakeServer) serveLease(w http.ResponseWriter, r *http.Request) {
	consumer, target := r.PathValue("consumer"), r.URL.Query().Get("target") == "true"
	s.mu.Lock()
	err := s.lease(consumer, target, r.Method == http.MethodPut)
	s.mu.Unlock()
	if err != nil {
		replyError(w, err)
		return
	}
	s.answerDevice(w)
}

func (s *fakeServer) lease(consumer string, target, on bool) error {
	if s.machine == nil {
		return api.Errorf(api.CodeConflict, "device %q is not served", s.name)
	}
	leases := &s.rec.Leases
	if target {
		leases = &s.rec.TargetLeases
	}
	had := slices.Contains(*leases, consumer)
	switch {
	case on && !had:
		*leases = append(*leases, consumer)
		s.machine.Attach(consumer)
		s.eventLocked(api.EventAttached, consumer)
	case !on && had:
		*leases = slices.DeleteFunc(*leases, func(c string) bool { return c == consumer })
		s.machine.Detach(consumer)
		s.eventLocked(api.EventDetached, consumer)
	case !on && !target:
		return api.Errorf(api.CodeNotFound, "device %q: %q has no lease on it", s.name, consumer)
	}
	return s.h.records().Save(s.rec)
}

func (s *fakeServer) serveEvents(w http.ResponseWriter, r *http.Request) {
	since, _ := strconv.ParseUint(r.URL.Query().Get("since"), 10, 64)
	enc, flush := json.NewEncoder(w), http.NewResponseController(w)
	s.mu.Lock()
	if r.URL.Query().Get("boot") != s.instance {
		since = 0
	}
	first := api.Event{Kind: api.EventJournal, Message: s.instance, Seq: s.last + 1}
	if since < s.lost {
		first.Missed = s.lost - since
	}
	s.mu.Unlock()
	enc.Encode(first)
	for {
		s.mu.Lock()
		var send []api.Event
		for _, e := range s.ring {
			if e.Seq > since {
				send = append(send, e)
			}
		}
		more := s.more
		s.mu.Unlock()
		for _, e := range send {
			if enc.Encode(e) != nil {
				return
			}
			since = e.Seq
		}
		flush.Flush()
		select {
		case <-more:
		case <-r.Context().Done():
			return
		case <-s.over:
			return
		}
	}
}
