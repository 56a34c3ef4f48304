package manager

import (
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"holdfast/api"
	"holdfast/internal/httpjson"
	"holdfast/state"
)

func (s *fakeServer) handler() http.Handler {
	mux := http.NewServeMux()
	at := "/v1/devices/" + s.name
	mux.HandleFunc("GET /v1", func(w http.ResponseWriter, r *http.Request) {
		httpjson.Reply(w, 200, api.ServerInfo{API: 1, Build: s.build, Instance: s.instance, PID: s.pid, Name: s.name, Phase: "serving"})
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
		httpjson.Error(w, api.Errorf(api.CodeConflict, "device %q is live", s.name))
	})
	mux.HandleFunc("POST "+at+"/leave", func(w http.ResponseWriter, r *http.Request) {
		if s.leave != nil {
			httpjson.Error(w, s.leave)
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
			httpjson.Error(w, err)
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
		if busy := s.h.busy.Load(); busy > 0 {
			s.h.processor.Lock()
			time.Sleep(time.Duration(busy))
			s.h.processor.Unlock()
		}
		if hold != nil {
			select {
			case <-hold:
			case <-r.Context().Done():
				return
			}
		}
		if refuse != nil && r.Method != http.MethodGet {
			httpjson.Error(w, refuse)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (s *fakeServer) answerDevice(w http.ResponseWriter) {
	if d := s.device(); d != nil {
		httpjson.Reply(w, 200, d)
		return
	}
	httpjson.Error(w, api.Errorf(api.CodeNotFound, "there is no device %q", s.name))
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
		httpjson.Error(w, api.Errorf(api.CodeInvalid, "%w", err))
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
		httpjson.Error(w, err)
		http.NewResponseController(w).Flush()
		if s.device() == nil {
			go s.finish(0) // it has nothing to do
		}
		return
	}
	httpjson.Reply(w, 201, s.device())
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
		httpjson.Error(w, e)
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
		httpjson.Error(w, err)
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
