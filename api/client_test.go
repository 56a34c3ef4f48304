package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
)

// answer has a server on the run directory's socket answer as given, until the test ends.
func answer(t *testing.T, dir string, h http.HandlerFunc) {
	t.Helper()
	l := listen(t, dir)
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

func listen(t *testing.T, dir string) net.Listener {
	t.Helper()
	addr, release, err := SocketAddress(filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	l, err := net.Listen("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func wantCode(t *testing.T, err error, code Code, says ...string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got error %v (%v), want code %s", err, CodeOf(err), code)
	}
	if strings.Contains(e.Message, "\n") {
		t.Errorf("more than a line: %q", e.Message)
	}
	for _, s := range says {
		if !strings.Contains(e.Message, s) {
			t.Errorf("%q doesn't say %q", e.Message, s)
		}
	}
}

// TestStrangers: whatever listens there instead of the manager, the client says so in an error
// and ends.
func TestStrangers(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		code   Code
	}{
		"hangs up":    {"", CodeUnreachable},
		"rubbish":     {"220 mail.example ESMTP\r\n", CodeUnreachable},
		"html":        {"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", CodeInternal},
		"error":       {"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\nnope", CodeInternal},
		"empty error": {"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", CodeInternal},
		"cut off":     {"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n{", CodeUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := listen(t, dir)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Read(make([]byte, 4096))
					io.WriteString(c, tt.answer)
					c.Close()
				}
			}()
			_, err := NewClient(dir).Snapshot(t.Context())
			wantCode(t, err, tt.code, SocketName)
		})
	}
}

// TestNobody: the error for a socket that is not there, or is a dead process's, says whose it
// is and what to do.
func TestNobody(t *testing.T) {
	dir := t.TempDir()
	_, err := NewClient(dir).Snapshot(t.Context())
	wantCode(t, err, CodeUnreachable, "no manager listens", "holdfast daemon", "--run-dir", dir)
	_, err = NewServerClient(dir, "v").Server(t.Context())
	wantCode(t, err, CodeUnreachable, `no server of device "v" listens`, dir)
	l := listen(t, dir).(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	l.Close()
	_, err = NewClient(dir).Snapshot(t.Context())
	wantCode(t, err, CodeUnreachable, "no manager listens")
}

// TestLongSocketPath: a run directory may be longer than a socket's address.
func TestLongSocketPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 100), strings.Repeat("y", 100))
	_, err := NewClient(dir).Snapshot(t.Context())
	wantCode(t, err, CodeUnreachable, "no manager listens")
	if err := unix.Mkdir(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	answer(t, dir, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"version":"x"}`) })
	if info, err := NewClient(dir).Daemon(t.Context()); err != nil || info.Version != "x" {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestFullSocket: a manager whose socket is there and takes nobody isn't said to be missing.
func TestFullSocket(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	at := &unix.SockaddrUnix{Name: filepath.Join(dir, SocketName)}
	if err := errors.Join(unix.Bind(fd, at), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 4 { // more than wait in it
		c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		_ = unix.Connect(c, at)
	}
	_, err = NewClient(dir).Snapshot(t.Context())
	wantCode(t, err, CodeUnreachable, "may hang")
	if strings.Contains(err.Error(), "no manager listens") {
		t.Errorf("%q", err)
	}
}

// TestSilence: a client waits for a manager that takes connections and doesn't answer for as
// long as it is told to.
func TestSilence(t *testing.T) {
	dir := t.TempDir()
	listen(t, dir)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := NewClient(dir).Snapshot(short)
	wantCode(t, err, CodeUnreachable, "no answer from the manager")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = NewClient(dir).Snapshot(ended)
	wantCode(t, err, CodeInternal, "gave up waiting for the manager")
}

// TestErrorsTravel: an error arrives as it was sent, in a status that other programs understand.
func TestErrorsTravel(t *testing.T) {
	dir := t.TempDir()
	var sent *Error
	answer(t, dir, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(sent.Code.Status())
		json.NewEncoder(w).Encode(sent)
	})
	c := NewClient(dir)
	for code, status := range map[Code]int{CodeInvalid: 400, CodeNotFound: 404, CodeExists: 409, CodeConflict: 409, CodeBusy: 423,
		CodeImage: 422, CodeDriver: 503, CodeNotSupported: 409, CodeStopping: 503, CodeInternal: 500} {
		sent = Errorf(code, "the reason")
		sent.Users = []User{{Kind: "mount", Device: "ublkb0", Name: "/mnt"}}
		err := c.Remove(t.Context(), "v", false)
		wantCode(t, err, code, "the reason")
		if e := AsError(err); len(e.Users) != 1 || e.Users[0] != sent.Users[0] {
			t.Errorf("%s: users %+v", code, e.Users)
		}
		if code.Status() != status {
			t.Errorf("%s travels with %d, not %d", code, code.Status(), status)
		}
	}
}

// TestRequests: what each method asks for, with names that could be taken for parts of a path.
func TestRequests(t *testing.T) {
	dir := t.TempDir()
	var got string
	answer(t, dir, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = fmt.Sprintf("%s %s %s", r.Method, r.RequestURI, body)
		io.WriteString(w, "{}")
	})
	c, ctx, level := NewClient(dir), t.Context(), 1
	for want, do := range map[string]func() error{
		"GET /v1 ":                                     func() error { _, err := c.Daemon(ctx); return err },
		"GET /v1/devices ":                             func() error { _, err := c.Snapshot(ctx); return err },
		"GET /v1/devices?users=false ":                 func() error { _, err := c.Brief(ctx); return err },
		"GET /v1/devices/v ":                           func() error { _, err := c.Device(ctx, "v"); return err },
		"GET /v1/devices/v?users=false ":               func() error { _, err := c.BriefDevice(ctx, "v"); return err },
		"GET /v1/devices/%2E ":                         func() error { _, err := c.Device(ctx, "."); return err },
		"GET /v1/devices/%2E. ":                        func() error { _, err := c.Device(ctx, ".."); return err },
		"GET /v1/devices/a%2Fb%3Fx ":                   func() error { _, err := c.Device(ctx, "a/b?x"); return err },
		"DELETE /v1/devices/v ":                        func() error { return c.Remove(ctx, "v", false) },
		"DELETE /v1/devices/v?force=true ":             func() error { return c.Remove(ctx, "v", true) },
		`POST /v1/devices/v/recover {}`:                func() error { _, err := c.Recover(ctx, "v", false); return err },
		`POST /v1/devices/v/leave {}`:                  func() error { return c.Leave(ctx, "v") },
		"PUT /v1/devices/v/leases/a%2Fb ":              func() error { _, err := c.Attach(ctx, "v", "a/b"); return err },
		"DELETE /v1/devices/v/leases/a ":               func() error { _, err := c.Detach(ctx, "v", "a"); return err },
		"PUT /v1/devices/v/leases/lio?target=true ":    func() error { _, err := c.TargetLease(ctx, "v", "lio", true); return err },
		"DELETE /v1/devices/v/leases/lio?target=true ": func() error { _, err := c.TargetLease(ctx, "v", "lio", false); return err },
		`PUT /v1/devices/v/standby {"on":true}`:        func() error { _, err := c.SetStandby(ctx, "v", true); return err },
		`PUT /v1/standby-check {"on":false}`:           func() error { _, err := c.SetKey(ctx, false); return err },
		"GET /v1/attr/block/v/ro ":                     func() error { _, err := c.Attr(ctx, "/block/v/ro/"); return err },
		`PUT /v1/attr/a%20b {"value":"1"}`:             func() error { return c.SetAttr(ctx, "a b", "1") },
		`POST /v1/stop {"timeout":"10s"}`: func() error {
			_, err := c.StopServers(ctx, StopRequest{Timeout: Duration(10 * time.Second)})
			return err
		},
		`POST /v1/devices/v/replace {"level":1,"image":{"path":"/i"},"force":true}`: func() error {
			_, err := c.Replace(ctx, "v", ReplaceRequest{Level: &level, Image: image.Ref{Path: "/i"}, Force: true})
			return err
		},
	} {
		got = ""
		if err := do(); err != nil || got != want {
			t.Errorf("got %q, want %q: %v", got, want, err)
		}
	}
	// What makes no sense isn't sent.
	got = ""
	_, err := c.Device(ctx, "")
	wantCode(t, err, CodeInvalid)
	wantCode(t, c.Remove(ctx, "", true), CodeInvalid)
	_, err = c.Create(ctx, Spec{Name: "v", Images: []image.Ref{{Path: "i"}}})
	wantCode(t, err, CodeInvalid, `image "i": the path is not absolute`)
	if got != "" {
		t.Errorf("asked for %q", got)
	}
}

// TestWaitOverRestart: a wait goes on while there is no manager and when one ends, and is
// over with any other error.
func TestWaitOverRestart(t *testing.T) {
	dir := t.TempDir()
	var asked atomic.Int32
	began := make(chan error, 1)
	go func() {
		_, err := NewClient(dir).Wait(t.Context(), "v", []string{StateLive, StateLost})
		began <- err
	}()
	answer(t, dir, func(w http.ResponseWriter, r *http.Request) {
		if want := "/v1/devices/v/wait?state=live&state=lost"; r.RequestURI != want {
			t.Errorf("%s, want %s", r.RequestURI, want)
		}
		e := Errorf(CodeStopping, "it ends")
		switch asked.Add(1) {
		case 1:
		case 2:
			panic(http.ErrAbortHandler) // hangs up
		default:
			e = Errorf(CodeNotFound, "no device")
		}
		w.WriteHeader(e.Code.Status())
		json.NewEncoder(w).Encode(e)
	})
	wantCode(t, <-began, CodeNotFound, "no device")
	if n := asked.Load(); n != 3 {
		t.Errorf("asked %d times", n)
	}
	c := NewClient(dir)
	for _, states := range [][]string{nil, {"alive"}, {StateLive, ""}} {
		_, err := c.Wait(t.Context(), "v", states)
		wantCode(t, err, CodeInvalid)
	}
}

// TestEvents: a list of events that was cut off is not taken for all there are.
func TestEvents(t *testing.T) {
	dir := t.TempDir()
	var whole, half bool
	answer(t, dir, func(w http.ResponseWriter, r *http.Request) {
		if want := "/v1/events?follow=false&device=a%26b"; r.RequestURI != want {
			t.Errorf("%s, want %s", r.RequestURI, want)
		}
		io.WriteString(w, `{"kind":"created"}`+"\n"+`{"kind":"removed"}`+"\n")
		if half {
			io.WriteString(w, `{"kind":`)
		}
		if !whole {
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	for _, tt := range []struct{ whole, half bool }{{true, false}, {true, true}, {false, false}, {false, true}} {
		whole, half = tt.whole, tt.half
		var kinds string
		err := NewClient(dir).Events(t.Context(), EventsQuery{Device: "a&b"}, func(e Event) error { kinds += e.Kind + " "; return nil })
		if kinds != "created removed " {
			t.Errorf("%+v: %q", tt, kinds)
		}
		if whole && !half {
			if err != nil {
				t.Errorf("%+v: %v", tt, err)
			}
			continue
		}
		wantCode(t, err, CodeUnreachable, "hung up")
	}
}
