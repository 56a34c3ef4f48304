package manager

import (
	"encoding/json"
	"errors"
	"net/http"
	"path/filepath"
	"time"

	"holdfast/api"
	"holdfast/internal/httpjson"
	"holdfast/state"
)

// SocketPath is where the manager listens.
func (m *Manager) SocketPath() string { return filepath.Join(m.cfg.RunDir, api.SocketName) }

// listen opens the socket and prepares the server.
func (m *Manager) listen() (err error) {
	if m.listener, m.owned, err = controlSocket(m.SocketPath()); err != nil {
		return err
	}
	m.server = &http.Server{
		Handler:           m.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       time.Minute,
		// No WriteTimeout: a creation with a check of a large image takes its
		// time, and its client can hang up.
		MaxHeaderBytes: 64 << 10,
	}
	return nil
}

// Serve answers clients until Close.
func (m *Manager) Serve() error {
	if err := m.server.Serve(m.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (m *Manager) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1", func(w http.ResponseWriter, r *http.Request) { httpjson.Reply(w, http.StatusOK, m.Info()) })
	mux.HandleFunc("GET /v1/devices", func(w http.ResponseWriter, r *http.Request) {
		httpjson.Reply(w, http.StatusOK, m.Snapshot(r.Context(), !brief(r)))
	})
	mux.HandleFunc("POST /v1/devices", m.serveCreate)
	mux.HandleFunc("GET /v1/devices/{name}", m.named(func(w http.ResponseWriter, r *http.Request, name string) {
		answer(w)(m.Device(r.Context(), name, !brief(r)))
	}))
	mux.HandleFunc("DELETE /v1/devices/{name}", m.named(m.serveRemove))
	mux.HandleFunc("GET /v1/devices/{name}/wait", m.named(m.serveWait))
	mux.HandleFunc("POST /v1/devices/{name}/replace", m.named(m.forward))
	mux.HandleFunc("POST /v1/devices/{name}/recover", m.named(m.forward))
	mux.HandleFunc("PUT /v1/devices/{name}/standby", m.named(m.forward))
	mux.HandleFunc("PUT /v1/devices/{name}/leases/{consumer}", m.named(m.serveLease))
	mux.HandleFunc("DELETE /v1/devices/{name}/leases/{consumer}", m.named(m.serveLease))
	mux.HandleFunc("GET /v1/devices/{name}/events", m.named(m.forward))
	mux.HandleFunc("POST /v1/upgrade", m.serveUpgrade)
	mux.HandleFunc("POST /v1/stop", m.serveStop)
	mux.HandleFunc("PUT /v1/standby-check", m.serveCheck)
	mux.HandleFunc("GET /v1/attr/{path...}", m.serveAttr)
	mux.HandleFunc("PUT /v1/attr/{path...}", m.serveSetAttr)
	mux.HandleFunc("GET /v1/events", m.serveEvents)
	mux.Handle("GET /metrics", m.metricsHandler())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		httpjson.Error(w, api.Errorf(api.CodeInvalid, "this manager's API has no %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// brief says that a question is not about the users of devices.
func brief(r *http.Request) bool { return r.URL.Query().Get("users") == "false" }

func (m *Manager) serveCreate(w http.ResponseWriter, r *http.Request) {
	var spec api.Spec
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, state.MaxRecord/2))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&spec); err != nil {
		httpjson.Error(w, api.Errorf(api.CodeInvalid, "not a device spec: %w", err))
		return
	}
	dev, err := m.Create(r.Context(), spec)
	if err != nil {
		m.log.Error().Str("device", spec.Name).Msgf("create: %v", err)
		httpjson.Error(w, err)
		return
	}
	httpjson.Reply(w, http.StatusCreated, dev)
}

func (m *Manager) serveCheck(w http.ResponseWriter, r *http.Request) {
	in, ok := httpjson.Body[api.Switch](w, r, "a switch")
	if !ok {
		return
	}
	if err := m.check.byHand(in.On); err != nil {
		httpjson.Error(w, err)
		return
	}
	httpjson.Reply(w, http.StatusOK, m.Key())
}

func (m *Manager) serveUpgrade(w http.ResponseWriter, r *http.Request) {
	in, ok := httpjson.Body[api.UpgradeRequest](w, r, "an upgrade")
	if !ok {
		return
	}
	res, err := m.Upgrade(r.Context(), *in)
	if err != nil {
		httpjson.Error(w, err)
		return
	}
	httpjson.Reply(w, http.StatusOK, res)
}

func (m *Manager) serveStop(w http.ResponseWriter, r *http.Request) {
	in, ok := httpjson.Body[api.StopRequest](w, r, "a wish to stop")
	if !ok {
		return
	}
	res, err := m.Stop(r.Context(), *in)
	if err != nil {
		httpjson.Error(w, err)
		return
	}
	httpjson.Reply(w, http.StatusOK, res)
}

func (m *Manager) serveAttr(w http.ResponseWriter, r *http.Request) {
	info, err := m.tree.read(r.PathValue("path"))
	if err != nil {
		httpjson.Error(w, err)
		return
	}
	httpjson.Reply(w, http.StatusOK, info)
}

func (m *Manager) serveSetAttr(w http.ResponseWriter, r *http.Request) {
	in, ok := httpjson.Body[api.AttrValue](w, r, "a value")
	if !ok {
		return
	}
	if err := m.tree.write(r.PathValue("path"), in.Value); err != nil {
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
