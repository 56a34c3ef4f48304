package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"holdfast/api"
	"holdfast/state"
)

// SocketPath is where the daemon listens.
func (d *Daemon) SocketPath() string { return filepath.Join(d.cfg.RunDir, api.SocketName) }

// listen opens the socket and prepares the server.
func (d *Daemon) listen(heir *inheritance) error {
	var l *net.UnixListener
	var err error
	if heir != nil {
		l, d.socketOwned = heir.socket, heir.owned
	} else if l, d.socketOwned, err = controlSocket(d.SocketPath()); err != nil {
		return err
	}
	d.listener = l
	if d.socketFile, err = l.File(); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	d.server = &http.Server{
		Handler:           d.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       time.Minute,
		// No WriteTimeout: a creation with a check of a large image takes its
		// time, and its client can hang up.
		MaxHeaderBytes: 64 << 10,
	}
	return nil
}

// Serve answers clients until Close. During an upgrade, which closes the listener, it doesn't
// take new ones.
func (d *Daemon) Serve() error {
	for {
		d.cfgMu.Lock()
		l := d.listener
		d.cfgMu.Unlock()
		err := d.server.Serve(l)
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		if !errors.Is(err, net.ErrClosed) {
			return err
		}
		select {
		case <-d.taken:
		case <-d.closing:
			return nil
		}
	}
}

func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, d.Info())
	})
	mux.HandleFunc("GET /v1/devices", func(w http.ResponseWriter, r *http.Request) {
		if brief(r) {
			reply(w, http.StatusOK, d.Brief())
			return
		}
		reply(w, http.StatusOK, d.Snapshot())
	})
	mux.HandleFunc("GET /v1/devices/{name}", d.named(func(w http.ResponseWriter, r *http.Request, name string) {
		if brief(r) {
			answer(w)(d.BriefDevice(name))
			return
		}
		answer(w)(d.Device(name))
	}))
	mux.HandleFunc("POST /v1/devices", d.serveCreate)
	mux.HandleFunc("DELETE /v1/devices/{name}", d.named(d.serveRemove))
	mux.HandleFunc("GET /v1/devices/{name}/wait", d.named(d.serveWait))
	mux.HandleFunc("POST /v1/devices/{name}/replace", d.named(d.serveReplace))
	mux.HandleFunc("POST /v1/devices/{name}/recover", d.named(d.serveRecover))
	mux.HandleFunc("PUT /v1/devices/{name}/standby", d.named(d.serveStandby))
	mux.HandleFunc("PUT /v1/devices/{name}/leases/{consumer}", d.named(func(w http.ResponseWriter, r *http.Request, name string) {
		answer(w)(d.Attach(r.Context(), name, r.PathValue("consumer")))
	}))
	mux.HandleFunc("DELETE /v1/devices/{name}/leases/{consumer}", d.named(func(w http.ResponseWriter, r *http.Request, name string) {
		answer(w)(d.Detach(r.Context(), name, r.PathValue("consumer")))
	}))
	mux.HandleFunc("POST /v1/upgrade", d.serveUpgrade)
	mux.HandleFunc("PUT /v1/standby-check", d.serveKey)
	mux.HandleFunc("GET /v1/attr/{path...}", d.serveAttr)
	mux.HandleFunc("PUT /v1/attr/{path...}", d.serveSetAttr)
	mux.HandleFunc("GET /v1/events", d.serveEvents)
	figures := d.metricsHandler()
	mux.Handle("GET /metrics", figures)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		replyError(w, api.Errorf(api.CodeInvalid, "this daemon's API has no %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// brief says that a question is not about the users of devices.
func brief(r *http.Request) bool { return r.URL.Query().Get("users") == "false" }

func (d *Daemon) serveCreate(w http.ResponseWriter, r *http.Request) {
	var spec api.Spec
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, state.MaxRecord/2))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&spec); err != nil {
		replyError(w, api.Errorf(api.CodeInvalid, "not a device spec: %w", err))
		return
	}
	dev, err := d.Create(r.Context(), spec)
	if err != nil {
		d.log.Error().Str("device", spec.Name).Msgf("create: %v", err)
		replyError(w, err)
		return
	}
	reply(w, http.StatusCreated, dev)
}

func (d *Daemon) serveRemove(w http.ResponseWriter, r *http.Request, name string) {
	force := false
	if v := r.URL.Query().Get("force"); v != "" {
		var err error
		if force, err = strconv.ParseBool(v); err != nil {
			replyError(w, api.Errorf(api.CodeInvalid, "force=%q is neither true nor false", v))
			return
		}
	}
	if err := d.Remove(r.Context(), name, force); err != nil {
		replyError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// maxBody bounds what a small request carries.
const maxBody = 64 << 10

// body reads a request's JSON; false: it was answered with what is wrong.
func body[T any](w http.ResponseWriter, r *http.Request, what string) (*T, bool) {
	in := new(T)
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(in); err != nil {
		replyError(w, api.Errorf(api.CodeInvalid, "not %s: %w", what, err))
		return nil, false
	}
	return in, true
}

// answer is for calls that give a device.
func answer(w http.ResponseWriter) func(*api.Device, error) {
	return func(dev *api.Device, err error) {
		if err != nil {
			replyError(w, err)
			return
		}
		reply(w, http.StatusOK, dev)
	}
}

func (d *Daemon) serveStandby(w http.ResponseWriter, r *http.Request, name string) {
	if in, ok := body[api.Switch](w, r, "a switch"); ok {
		answer(w)(d.SetStandby(name, in.On))
	}
}

func (d *Daemon) serveReplace(w http.ResponseWriter, r *http.Request, name string) {
	if in, ok := body[api.ReplaceRequest](w, r, "a replacement"); ok {
		answer(w)(d.Replace(r.Context(), name, *in))
	}
}

func (d *Daemon) serveRecover(w http.ResponseWriter, r *http.Request, name string) {
	if in, ok := body[api.Force](w, r, "a recovery"); ok {
		answer(w)(d.Recover(r.Context(), name, in.Force))
	}
}

func (d *Daemon) serveUpgrade(w http.ResponseWriter, r *http.Request) {
	in, ok := body[api.UpgradeRequest](w, r, "an upgrade")
	if !ok {
		return
	}
	// Once begun it goes on, whether somebody waits for it or not.
	res, err := d.Upgrade(context.WithoutCancel(r.Context()), *in)
	if err != nil {
		replyError(w, err)
	} else {
		reply(w, http.StatusOK, res)
	}
	if d.isGone() {
		http.NewResponseController(w).Flush()
		d.handOver()
	}
}

func (d *Daemon) serveKey(w http.ResponseWriter, r *http.Request) {
	in, ok := body[api.Switch](w, r, "a switch")
	if !ok {
		return
	}
	info, err := d.SetKey(in.On)
	if err != nil {
		replyError(w, err)
		return
	}
	reply(w, http.StatusOK, info)
}

func (d *Daemon) serveAttr(w http.ResponseWriter, r *http.Request) {
	info, err := d.Attr(r.PathValue("path"))
	if err != nil {
		replyError(w, err)
		return
	}
	reply(w, http.StatusOK, info)
}

func (d *Daemon) serveSetAttr(w http.ResponseWriter, r *http.Request) {
	in, ok := body[api.AttrValue](w, r, "a value")
	if !ok {
		return
	}
	if err := d.SetAttr(r.PathValue("path"), in.Value); err != nil {
		replyError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	text, err := json.Marshal(body)
	if err != nil {
		status, text = http.StatusInternalServerError, []byte("{}")
	}
	// With its length the answer is whole when it was flushed: an upgrade ends this process.
	w.Header().Set("Content-Length", strconv.Itoa(len(text)+1))
	w.WriteHeader(status)
	w.Write(append(text, '\n'))
}

func replyError(w http.ResponseWriter, err error) {
	e := api.AsError(err)
	reply(w, e.Code.Status(), e)
}
