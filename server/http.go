package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"

	"holdfast/api"
	"holdfast/internal/httpjson"
)

func pid() int { return os.Getpid() }

// front is the server's socket: it takes requests apart, has the server do what they want, and
// answers.
type front struct {
	s    *Server
	http *http.Server
	path string
}

// listen opens the socket. The device's lock is held, so one that is there is of a server that
// is no more.
func listen(s *Server) (*front, error) {
	l, err := s.dir().Listen()
	if err != nil {
		return nil, err
	}
	f := &front{s: s, path: s.dir().Socket()}
	f.http = &http.Server{
		Handler:           f.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       time.Minute,
		// No WriteTimeout: a creation with a check of a large image takes its
		// time, and its client can hang up.
		MaxHeaderBytes: 64 << 10,
	}
	go func() { _ = f.http.Serve(l) }()
	return f, nil
}

func (f *front) close(wait time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	_ = f.http.Shutdown(ctx)
	f.http.Close()
	os.Remove(f.path)
}

func (f *front) handler() http.Handler {
	mux := http.NewServeMux()
	device := "/v1/devices/" + f.s.name
	mux.HandleFunc("GET /v1", func(w http.ResponseWriter, r *http.Request) { httpjson.Reply(w, http.StatusOK, f.s.Info()) })
	mux.HandleFunc("PUT "+device, f.serveCreate)
	mux.HandleFunc("GET "+device, f.serveDevice)
	mux.HandleFunc("DELETE "+device, f.serveRemove)
	mux.HandleFunc("GET "+device+"/wait", func(w http.ResponseWriter, r *http.Request) {
		answer(w)(f.s.Wait(r.Context(), r.URL.Query()["state"]))
	})
	mux.HandleFunc("GET "+device+"/events", f.serveEvents)
	mux.HandleFunc("POST "+device+"/replace", func(w http.ResponseWriter, r *http.Request) {
		if in, ok := httpjson.Body[api.ReplaceRequest](w, r, "a replacement"); ok {
			answer(w)(f.s.Replace(r.Context(), *in))
		}
	})
	mux.HandleFunc("POST "+device+"/recover", func(w http.ResponseWriter, r *http.Request) {
		if in, ok := httpjson.Body[api.Force](w, r, "a recovery"); ok {
			answer(w)(f.s.Recover(r.Context(), in.Force))
		}
	})
	mux.HandleFunc("POST "+device+"/leave", func(w http.ResponseWriter, r *http.Request) {
		if _, ok := httpjson.Body[api.LeaveRequest](w, r, "a wish to leave"); ok {
			done(w, f.s.Leave(r.Context()))
		}
	})
	mux.HandleFunc("PUT "+device+"/standby", func(w http.ResponseWriter, r *http.Request) {
		if in, ok := httpjson.Body[api.Switch](w, r, "a switch"); ok {
			answer(w)(f.s.SetStandby(in.On))
		}
	})
	mux.HandleFunc("PUT "+device+"/leases/{consumer}", f.serveLease(f.s.Attach))
	mux.HandleFunc("DELETE "+device+"/leases/{consumer}", f.serveLease(f.s.Detach))
	mux.HandleFunc("/v1/devices/{name}/", func(w http.ResponseWriter, r *http.Request) { f.notHere(w, r) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { f.notHere(w, r) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet { // reading keeps no server
			f.s.set(func() {})
		}
		mux.ServeHTTP(w, r)
	})
}

func (f *front) notHere(w http.ResponseWriter, r *http.Request) {
	httpjson.Error(w, api.Errorf(api.CodeInvalid, "the server of device %q has no %s %s", f.s.name, r.Method, r.URL.Path))
}

func (f *front) serveCreate(w http.ResponseWriter, r *http.Request) {
	var spec api.Spec
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxSpec))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&spec); err != nil {
		httpjson.Error(w, api.Errorf(api.CodeInvalid, "not a device spec: %w", err))
		return
	}
	dev, err := f.s.Create(r.Context(), spec)
	if err != nil {
		f.s.log.Error().Msgf("create: %v", err)
		httpjson.Error(w, err)
		return
	}
	httpjson.Reply(w, http.StatusCreated, dev)
}

func (f *front) serveDevice(w http.ResponseWriter, r *http.Request) {
	dev := f.s.Device()
	if dev == nil {
		httpjson.Error(w, api.Errorf(api.CodeNotFound, "there is no device %q", f.s.name))
		return
	}
	if r.URL.Query().Get("users") != "false" {
		f.s.withUsers(dev)
	}
	httpjson.Reply(w, http.StatusOK, dev)
}

func (f *front) serveRemove(w http.ResponseWriter, r *http.Request) {
	if force, ok := httpjson.Truth(w, r, "force"); ok {
		done(w, f.s.Remove(r.Context(), force))
	}
}

func (f *front) serveLease(change func(ctx context.Context, consumer string, target bool) (*api.Device, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if target, ok := httpjson.Truth(w, r, "target"); ok {
			answer(w)(change(r.Context(), r.PathValue("consumer"), target))
		}
	}
}

// serveEvents answers with one event a line: what the journal has, then the events after a number,
// and with follow=true those to come, until the client hangs up or the server ends.
func (f *front) serveEvents(w http.ResponseWriter, r *http.Request) {
	follow, ok := httpjson.Truth(w, r, "follow")
	if !ok {
		return
	}
	var since uint64
	if v := r.URL.Query().Get("since"); v != "" {
		var err error
		if since, err = strconv.ParseUint(v, 10, 64); err != nil {
			httpjson.Error(w, api.Errorf(api.CodeInvalid, "since=%q is no number", v))
			return
		}
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(f.s.alive, cancel)()
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	instance, last := f.s.journal.Instance()
	events, missed := f.s.journal.Since(r.URL.Query().Get("boot"), since)
	if enc.Encode(api.Event{Time: time.Now(), Device: f.s.name, Kind: api.EventJournal, Message: instance, Seq: last + 1, Missed: missed}) != nil {
		return
	}
	since = last
	for {
		for _, e := range events {
			if enc.Encode(e) != nil {
				return
			}
			since = e.Seq
		}
		if flush.Flush() != nil || !follow {
			return
		}
		// What came before the server's end is told yet.
		ended := f.s.journal.Wait(ctx, "", since) != nil
		if events, missed = f.s.journal.Since("", since); missed > 0 {
			e := api.Event{Time: time.Now(), Device: f.s.name, Kind: api.EventMissed, Message: fmt.Sprintf("%d events came too fast for this reader", missed), Missed: missed}
			if enc.Encode(e) != nil {
				return
			}
		}
		follow = !ended
	}
}

// maxSpec bounds what a creation's request carries: 253 images with paths of 4 KiB, escaped.
const maxSpec = 4 << 20

// answer is for calls that give the device.
func answer(w http.ResponseWriter) func(*api.Device, error) {
	return func(dev *api.Device, err error) {
		switch {
		case err != nil:
			httpjson.Error(w, err)
		case dev == nil:
			httpjson.Error(w, api.Errorf(api.CodeNotFound, "the device is gone"))
		default:
			httpjson.Reply(w, http.StatusOK, dev)
		}
	}
}

// done is for calls that give nothing.
func done(w http.ResponseWriter, err error) {
	if err != nil {
		httpjson.Error(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
