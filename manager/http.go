package manager

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"holdfast/api"
	"holdfast/internal/httpjson"
	"holdfast/state"
)

// A front answers clients at the control socket.
type front struct {
	m        *Manager
	listener *net.UnixListener
	owned    bool // the socket is ours, and not a service manager's
	server   *http.Server
}

// SocketPath is where the manager listens.
func (m *Manager) SocketPath() string { return filepath.Join(m.cfg.RunDir, api.SocketName) }

// listen opens the socket.
func (m *Manager) listen() (*front, error) {
	f := &front{m: m}
	var err error
	if f.listener, f.owned, err = controlSocket(m.SocketPath()); err != nil {
		return nil, err
	}
	f.server = &http.Server{
		Handler:           f.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       time.Minute,
		// No WriteTimeout: a creation with a check of a large image takes its
		// time, and its client can hang up.
		MaxHeaderBytes: 64 << 10,
	}
	return f, nil
}

// Serve answers clients until Close.
func (m *Manager) Serve() error {
	if err := m.front.server.Serve(m.front.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// answerWait bounds the wait for answers under way.
const answerWait = 2 * time.Second

// close ends what clients wait for. The socket stays.
func (f *front) close() {
	if f == nil {
		return
	}
	// Those who wait for a state are answered.
	ctx, cancel := context.WithTimeout(context.Background(), answerWait)
	_ = f.server.Shutdown(ctx)
	cancel()
	f.server.Close()
	f.listener.Close() // which Serve may never have been called for
}

// remove takes the socket away, if it is ours.
func (f *front) remove() {
	if f != nil && f.owned {
		os.Remove(f.m.SocketPath())
	}
}

func (f *front) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1", func(w http.ResponseWriter, r *http.Request) { httpjson.Reply(w, http.StatusOK, f.m.Info()) })
	mux.HandleFunc("GET /v1/devices", func(w http.ResponseWriter, r *http.Request) {
		httpjson.Reply(w, http.StatusOK, f.m.Snapshot(r.Context(), !brief(r)))
	})
	mux.HandleFunc("POST /v1/devices", f.serveCreate)
	mux.HandleFunc("GET /v1/devices/{name}", f.named(func(w http.ResponseWriter, r *http.Request, name string) {
		answer(w)(f.m.Device(r.Context(), name, !brief(r)))
	}))
	mux.HandleFunc("DELETE /v1/devices/{name}", f.named(f.serveRemove))
	mux.HandleFunc("GET /v1/devices/{name}/wait", f.named(f.serveWait))
	mux.HandleFunc("POST /v1/devices/{name}/replace", f.named(f.forward))
	mux.HandleFunc("POST /v1/devices/{name}/recover", f.named(f.forward))
	mux.HandleFunc("PUT /v1/devices/{name}/standby", f.named(f.forward))
	mux.HandleFunc("PUT /v1/devices/{name}/leases/{consumer}", f.named(f.serveLease))
	mux.HandleFunc("DELETE /v1/devices/{name}/leases/{consumer}", f.named(f.serveLease))
	mux.HandleFunc("GET /v1/devices/{name}/events", f.named(f.forward))
	mux.HandleFunc("POST /v1/upgrade", f.serveUpgrade)
	mux.HandleFunc("POST /v1/stop", f.serveStop)
	mux.HandleFunc("PUT /v1/standby-check", f.serveCheck)
	mux.HandleFunc("GET /v1/attr/{path...}", f.serveAttr)
	mux.HandleFunc("PUT /v1/attr/{path...}", f.serveSetAttr)
	mux.HandleFunc("GET /v1/events", f.serveEvents)
	mux.Handle("GET /metrics", f.m.metricsHandler())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		httpjson.Error(w, api.Errorf(api.CodeInvalid, "this manager's API has no %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// brief says that a question is not about the users of devices.
func brief(r *http.Request) bool { return r.URL.Query().Get("users") == "false" }

func (f *front) serveCreate(w http.ResponseWriter, r *http.Request) {
	var spec api.Spec
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, state.MaxRecord/2))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&spec); err != nil {
		httpjson.Error(w, api.Errorf(api.CodeInvalid, "not a device spec: %w", err))
		return
	}
	dev, err := f.m.Create(r.Context(), spec)
	if err != nil {
		f.m.log.Error().Str("device", spec.Name).Msgf("create: %v", err)
		httpjson.Error(w, err)
		return
	}
	httpjson.Reply(w, http.StatusCreated, dev)
}

func (f *front) serveCheck(w http.ResponseWriter, r *http.Request) {
	in, ok := httpjson.Body[api.Switch](w, r, "a switch")
	if !ok {
		return
	}
	if err := f.m.check.byHand(in.On); err != nil {
		httpjson.Error(w, err)
		return
	}
	httpjson.Reply(w, http.StatusOK, f.m.Key())
}

func (f *front) serveUpgrade(w http.ResponseWriter, r *http.Request) {
	in, ok := httpjson.Body[api.UpgradeRequest](w, r, "an upgrade")
	if !ok {
		return
	}
	res, err := f.m.Upgrade(r.Context(), *in)
	if err != nil {
		httpjson.Error(w, err)
		return
	}
	httpjson.Reply(w, http.StatusOK, res)
}

func (f *front) serveStop(w http.ResponseWriter, r *http.Request) {
	in, ok := httpjson.Body[api.StopRequest](w, r, "a wish to stop")
	if !ok {
		return
	}
	res, err := f.m.Stop(r.Context(), *in)
	if err != nil {
		httpjson.Error(w, err)
		return
	}
	httpjson.Reply(w, http.StatusOK, res)
}

func (f *front) serveAttr(w http.ResponseWriter, r *http.Request) {
	info, err := f.m.tree.read(r.PathValue("path"))
	if err != nil {
		httpjson.Error(w, err)
		return
	}
	httpjson.Reply(w, http.StatusOK, info)
}

func (f *front) serveSetAttr(w http.ResponseWriter, r *http.Request) {
	in, ok := httpjson.Body[api.AttrValue](w, r, "a value")
	if !ok {
		return
	}
	if err := f.m.tree.write(r.PathValue("path"), in.Value); err != nil {
		httpjson.Error(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// answer is for calls that give a device.
func answer(w http.ResponseWriter) func(*api.Device, error) {
	return func(dev *api.Device, err error) {
		if err != nil {
			httpjson.Error(w, err)
			return
		}
		httpjson.Reply(w, http.StatusOK, dev)
	}
}
