package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/state"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

func TestSecondDaemon(t *testing.T) {
	f := newFixture(t)
	for _, cfg := range []Config{
		{RunDir: f.runDir(), StateDir: f.dir + "/other"},
		{RunDir: f.dir + "/other", StateDir: f.stateDir()},
	} {
		cfg.Log = zerolog.Nop()
		_, err := start(cfg, f.k)
		e := wantCode(t, err, api.CodeBusy)
		if !strings.Contains(e.Message, "process ") || strings.Contains(e.Message, "\n") {
			t.Errorf("%q", e.Message)
		}
	}
	// The first one is untouched, and a refused one holds nothing.
	f.create("v", "i")
	f.restart()
	f.create("v", "i")
}

func TestSocket(t *testing.T) {
	f := newFixture(t)
	path := f.d.SocketPath()
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	f.crash()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is still there")
	}
	_, err := f.c.Snapshot(ctx)
	e := wantCode(t, err, api.CodeUnreachable)
	if !strings.Contains(e.Message, "holdfast daemon") {
		t.Errorf("%q", e.Message)
	}
	// A stale one, as kill -9 leaves it.
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	_, err = f.c.Snapshot(ctx)
	wantCode(t, err, api.CodeUnreachable)
	f.start()
	if _, err := f.c.Snapshot(ctx); err != nil {
		t.Error(err)
	}
	f.crash()
	// Something that is no socket isn't ours to delete.
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := start(Config{RunDir: f.runDir(), StateDir: f.stateDir(), Log: zerolog.Nop()}, f.k); err == nil {
		t.Error("no error")
	}
	if b, _ := os.ReadFile(path); string(b) != "mine" {
		t.Error("the file was overwritten")
	}
}

// TestLongSocketPath: a run directory may be longer than a socket's address.
func TestLongSocketPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 100), strings.Repeat("y", 100))
	_, err := api.NewClient(dir).Snapshot(ctx)
	if e := wantCode(t, err, api.CodeUnreachable); !strings.Contains(e.Message, "no daemon listens") {
		t.Errorf("before there is a daemon: %q", e.Message)
	}
	d, err := start(Config{RunDir: dir, StateDir: t.TempDir(), Log: zerolog.Nop(), NoTree: true}, newFake(t))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	go d.Serve()
	if _, err := api.NewClient(dir).Snapshot(ctx); err != nil {
		t.Error(err)
	}
}

// raw sends a request as any program might.
func (f *fixture) raw(method, path, body string) (int, map[string]any) {
	f.t.Helper()
	req, err := http.NewRequest(method, "http://x"+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	resp, err := f.c.HTTP().Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(resp.Body)
	out := map[string]any{}
	if len(data) > 0 {
		if err := json.Unmarshal(data, &out); err != nil {
			f.t.Fatalf("%s %s: %s: %q", method, path, resp.Status, data)
		}
	}
	return resp.StatusCode, out
}

func TestHTTP(t *testing.T) {
	f := newFixture(t)
	image := f.image("i").Path
	for _, tt := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/v1", "", 200, ""},
		{"GET", "/v1/devices", "", 200, ""},
		{"GET", "/v2/devices", "", 400, "invalid"},
		{"PUT", "/v1/devices", "", 400, "invalid"},
		{"GET", "/v1/devices/none", "", 404, "not_found"},
		{"GET", "/v1/devices/a%2Fb", "", 404, "not_found"},
		{"DELETE", "/v1/devices/none", "", 404, "not_found"},
		{"DELETE", "/v1/devices/none?force=perhaps", "", 400, "invalid"},
		{"POST", "/v1/devices", "", 400, "invalid"},
		{"POST", "/v1/devices", "[]", 400, "invalid"},
		{"POST", "/v1/devices", `{"name":"v","images":[{"path":"` + image + `"}],"sizes":1}`, 400, "invalid"},
		{"POST", "/v1/devices", `{"name":"v","images":[{"path":"/` + strings.Repeat("x", state.MaxRecord) + `"}]}`, 400, "invalid"},
		{"POST", "/v1/devices", `{"name":"v","images":[{"path":"i"}]}`, 400, "invalid"},
		{"POST", "/v1/devices", `{"name":"v","images":[{"path":"` + image + `"}]}`, 201, ""},
		{"POST", "/v1/devices", `{"name":"v","images":[{"path":"` + image + `"}]}`, 409, "exists"},
		{"DELETE", "/v1/devices/v?force=false", "", 204, ""},
	} {
		status, body := f.raw(tt.method, tt.path, tt.body)
		code, _ := body["code"].(string)
		msg, _ := body["error"].(string)
		if status != tt.status || code != tt.code || (code != "") != (msg != "") {
			t.Errorf("%s %s %.60s: %d %v", tt.method, tt.path, tt.body, status, body)
		}
	}
}

// TestNamesInPaths: any string may be asked for, and none reaches another path.
func TestNamesInPaths(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{".", "..", "a/b", "../devices", "%2e", "?force=true", "#", " ", "ü", "\x01", "v1?x=1"} {
		_, err := f.c.Device(ctx, name)
		wantCode(t, err, api.CodeNotFound)
		wantCode(t, f.c.Remove(ctx, name, false), api.CodeNotFound)
	}
	_, err := f.c.Device(ctx, "")
	wantCode(t, err, api.CodeInvalid)
}

// TestStrangers: whatever listens there instead of a daemon, the client says so
// in an error and ends.
func TestStrangers(t *testing.T) {
	for name, answer := range map[string]string{
		"hangs up": "",
		"rubbish":  "220 mail.example ESMTP\r\n",
		"html":     "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
		"error":    "HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\nnope",
		"cut off":  "HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n{",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l, err := net.Listen("unix", filepath.Join(dir, api.SocketName))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Read(make([]byte, 4096))
					io.WriteString(c, answer)
					c.Close()
				}
			}()
			_, err = api.NewClient(dir).Snapshot(ctx)
			if err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestFullSocket: a daemon whose socket is there and takes nobody isn't said to be missing.
func TestFullSocket(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	at := &unix.SockaddrUnix{Name: filepath.Join(dir, api.SocketName)}
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
	_, err = api.NewClient(dir).Snapshot(ctx)
	if e := wantCode(t, err, api.CodeUnreachable); !strings.Contains(e.Message, "may hang") || strings.Contains(e.Message, "no daemon listens") {
		t.Errorf("%q", e.Message)
	}
}

func TestSilentDaemon(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = api.NewClient(dir).Snapshot(short)
	wantCode(t, err, api.CodeUnreachable)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = api.NewClient(dir).Snapshot(ended)
	wantCode(t, err, api.CodeInternal)
}
