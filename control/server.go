package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/device"
)

// socketName is the socket's name in the run directory.
const socketName = "control.sock"

// maxSocketPath is sizeof(sockaddr_un.sun_path) less the final NUL.
const maxSocketPath = 107

// SocketPath is where the daemon listens.
func (d *Daemon) SocketPath() string { return filepath.Join(d.cfg.RunDir, socketName) }

func checkSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("the path of the control socket %q has %d bytes, and a unix socket's can have %d: choose a shorter --run-dir", path, len(path), maxSocketPath)
	}
	return nil
}

// listen makes the socket. The run directory's lock is held, so a socket that
// is there has no daemon behind it.
func (d *Daemon) listen() error {
	path := d.SocketPath()
	if err := checkSocketPath(path); err != nil {
		return err
	}
	switch fi, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("control socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("control socket: %q is in the way and is not a socket: remove it", path)
	default:
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("control socket: stale: %w", err)
		}
	}
	// With the umask there is no moment at which others could connect. It is
	// the whole process', but nothing else of us runs yet.
	mask := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(mask)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	// Close removes the socket itself, while the lock is still held.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	d.listener = l
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

// Serve answers clients until Close.
func (d *Daemon) Serve() error {
	err := d.server.Serve(d.listener)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, d.Info())
	})
	mux.HandleFunc("GET /v1/devices", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, d.Snapshot())
	})
	mux.HandleFunc("GET /v1/devices/{name}", func(w http.ResponseWriter, r *http.Request) {
		dev, err := d.Device(r.PathValue("name"))
		if err != nil {
			replyError(w, err)
			return
		}
		reply(w, http.StatusOK, dev)
	})
	mux.HandleFunc("POST /v1/devices", d.serveCreate)
	mux.HandleFunc("DELETE /v1/devices/{name}", d.serveRemove)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		replyError(w, fail(CodeInvalid, "this daemon's API has no %s %s", r.Method, r.URL.Path))
	})
	return mux
}

func (d *Daemon) serveCreate(w http.ResponseWriter, r *http.Request) {
	var spec device.Spec
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRecord/2))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&spec); err != nil {
		replyError(w, fail(CodeInvalid, "not a device spec: %w", err))
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

func (d *Daemon) serveRemove(w http.ResponseWriter, r *http.Request) {
	force := false
	if v := r.URL.Query().Get("force"); v != "" {
		var err error
		if force, err = strconv.ParseBool(v); err != nil {
			replyError(w, fail(CodeInvalid, "force=%q is neither true nor false", v))
			return
		}
	}
	if err := d.Remove(r.Context(), r.PathValue("name"), force); err != nil {
		replyError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

func replyError(w http.ResponseWriter, err error) {
	e := asError(err)
	reply(w, e.Code.status(), e)
}
