package manager

import (
	"context"
	"errors"
	"net/http"
	"net/http/httputil"
	"net/url"

	"holdfast/api"
	"holdfast/internal/httpjson"
)

// forward hands a command on to its device's server, and the answer back. A device without a server
// gets one for the command; one whose server is dying is refused at once, and one whose server is
// silent when that has been so for [pace.answer]. The command takes what it takes: its client has the
// patience. It ends when the server is found to be dying, as nobody will answer then.
func (f *front) forward(w http.ResponseWriter, r *http.Request, name string) {
	p := f.m.peers.acquire(name, false)
	if p == nil {
		httpjson.Error(w, api.Errorf(api.CodeNotFound, "there is no device %q", name))
		return
	}
	defer f.m.peers.release(p)
	switch there := p.current(r.Context()) != nil; p.state() {
	case api.ServerDying:
		httpjson.Error(w, p.unreachable())
		return
	default:
		if !there {
			httpjson.Error(w, api.Errorf(api.CodeNotFound, "there is no device %q", name))
			return
		}
	}
	if err := p.ensure(r.Context()); err != nil {
		httpjson.Error(w, err)
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	stop := p.whenDying(ctx, cancel)
	defer stop()
	proxy := httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			path := (&url.URL{Path: "/v1/devices/" + name}).EscapedPath() + restOf(r)
			pr.Out.URL = &url.URL{Scheme: "http", Host: "holdfast", Opaque: path, RawQuery: r.URL.RawQuery}
		},
		Transport:      p.client.HTTP().Transport,
		ModifyResponse: func(*http.Response) error { p.outdate(); return nil },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			var e *api.Error
			switch cause := context.Cause(ctx); {
			case errors.As(cause, &e) || errors.As(err, &e):
				httpjson.Error(w, e)
			case r.Context().Err() != nil: // nobody reads it
			default:
				httpjson.Error(w, api.Errorf(api.CodeUnreachable, "the server of device %q ended during the command: whether that was carried out is not known: %w", name, err))
			}
		},
	}
	proxy.ServeHTTP(w, r.WithContext(ctx))
}

// restOf is what the path of a request has behind the device's name, as it came.
func restOf(r *http.Request) string {
	rest := r.URL.EscapedPath()[len("/v1/devices/"):]
	for i := range rest {
		if rest[i] == '/' {
			return rest[i:]
		}
	}
	return ""
}

// whenDying ends a command when the server is dying, until stop is called.
func (p *peer) whenDying(ctx context.Context, end context.CancelCauseFunc) (stop func()) {
	over := make(chan struct{})
	go func() {
		for {
			changed := p.changed.Next()
			if p.state() == api.ServerDying {
				end(p.unreachable())
				return
			}
			select {
			case <-changed:
			case <-over:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { close(over) }
}

// serveRemove hands a removal on, or deletes a disk that has no record.
func (f *front) serveRemove(w http.ResponseWriter, r *http.Request, name string) {
	force, ok := httpjson.Truth(w, r, "force")
	if !ok {
		return
	}
	if d, is := f.m.orphans.named(name); is {
		if err := f.m.orphans.remove(r.Context(), d, force); err != nil {
			httpjson.Error(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	p := f.m.peers.get(name)
	status := &statusWriter{ResponseWriter: w}
	f.forward(status, r, name)
	if p != nil && status.code < 300 {
		p.removed()
	}
}

// statusWriter records how a request was answered.
type statusWriter struct {
	http.ResponseWriter
	code int
}

func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// serveLease hands a lease on, unless it is one of a target that is watched.
func (f *front) serveLease(w http.ResponseWriter, r *http.Request, name string) {
	consumer := r.PathValue("consumer")
	if f.m.targets.watches(consumer) {
		httpjson.Error(w, api.Errorf(api.CodeInvalid, "consumer %q: the manager itself sees what that target does", consumer))
		return
	}
	if r.URL.Query().Has("target") {
		httpjson.Error(w, api.Errorf(api.CodeInvalid, "leases of targets are the manager's own"))
		return
	}
	f.forward(w, r, name)
}
