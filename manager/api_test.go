package manager

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/state"
)

func TestSecondManager(t *testing.T) {
	f := newFixture(t)
	for _, cfg := range []Config{
		{RunDir: f.run(), StateDir: f.dir + "/other"},
		{RunDir: f.dir + "/other", StateDir: f.stateDir()},
	} {
		other := f.config()
		other.RunDir, other.StateDir = cfg.RunDir, cfg.StateDir
		_, err := Start(other)
		e := wantCode(t, err, api.CodeBusy)
		if !strings.Contains(e.Message, "process ") || strings.Contains(e.Message, "\n") {
			t.Errorf("%q", e.Message)
		}
	}
	// The first one is untouched, and a refused one holds nothing.
	f.create("v", "i")
	f.restart()
	f.eventually("v", api.StateLive)
}

func TestSocket(t *testing.T) {
	f := newFixture(t)
	path := f.m.SocketPath()
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	f.stop()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is still there")
	}
	_, err := f.c.Snapshot(ctx)
	if e := wantCode(t, err, api.CodeUnreachable); !strings.Contains(e.Message, "holdfast daemon") {
		t.Errorf("%q", e.Message)
	}
	// A stale one, as kill -9 leaves it.
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	f.start()
	if _, err := f.c.Snapshot(ctx); err != nil {
		t.Error(err)
	}
	f.stop()
	// Something that is no socket isn't ours to delete.
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(f.config()); err == nil {
		t.Error("no error")
	}
	if b, _ := os.ReadFile(path); string(b) != "mine" {
		t.Error("the file was overwritten")
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
		{"PUT", "/v1/devices/v/leases/a%20b", "", 200, ""}, // as it came: the server judges it
		{"PUT", "/v1/devices/v/leases/lio?target=true", "", 400, "invalid"},
		{"POST", "/v1/stop", `{"timeout":"-1s"}`, 400, "invalid"},
		{"GET", "/v1/events?follow=perhaps", "", 400, "invalid"},
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
	f.create("v", "i")
	for _, name := range []string{".", "..", "a/b", "../devices", "%2e", "?force=true", "#", " ", "ü", "\x01", "v1?x=1"} {
		_, err := f.c.Device(ctx, name)
		wantCode(t, err, api.CodeNotFound)
		wantCode(t, f.c.Remove(ctx, name, false), api.CodeNotFound)
	}
}

// TestKernelNames: wherever a device is named, the kernel's name does as well, and means no
// other device.
func TestKernelNames(t *testing.T) {
	f := newFixture(t)
	f.create("a", "i")
	f.create("b", "j")
	for disk, name := range map[string]string{"ublkb0": "a", "ublkb1": "b", "b": "b"} {
		if dev, err := f.c.Device(ctx, disk); err != nil || dev.Name != name {
			t.Errorf("%s: %+v, %v", disk, dev, err)
		}
		if dev, err := f.c.Attach(ctx, disk, "me"); err != nil || dev.Name != name {
			t.Errorf("attach %s: %+v, %v", disk, dev, err)
		}
	}
	f.arm("b")
	if dev, err := f.c.SetStandby(ctx, "ublkb1", true); err != nil || dev.Name != "b" || dev.State != api.StateStandby {
		t.Errorf("%+v, %v", dev, err)
	}
	if dev, err := f.c.Replace(ctx, "ublkb1", api.ReplaceRequest{Image: f.image("new")}); err != nil || dev.Name != "b" || dev.Images[0].Path != f.image("new").Path {
		t.Errorf("%+v, %v", dev, err)
	}
	if _, err := f.c.Recover(ctx, "ublkb1", false); err == nil || !strings.Contains(err.Error(), `"b"`) {
		t.Errorf("%v", err)
	}
	for _, e := range f.events("ublkb1") {
		if e == api.EventCreated {
			break
		}
	}
	for _, none := range []string{"ublkb7", "ublkb01", "ublkb99999999999999999999", "ublkc0", "ublkb"} {
		_, err := f.c.Device(ctx, none)
		wantCode(t, err, api.CodeNotFound)
		wantCode(t, f.c.Remove(ctx, none, true), api.CodeNotFound)
	}
	if err := f.c.Remove(ctx, "ublkb0", false); err != nil {
		t.Error(err)
	}
	if s := f.states(); len(s) != 1 || s["b"] == "" {
		t.Errorf("left: %v", s)
	}
	// A lost device has a number no more, whatever its record says.
	f.h.set(func() { f.h.wanted["b"] = false; f.h.disks = map[int]state.Disk{} })
	f.h.server("b").kill()
	f.eventually("b", api.StateLost)
	_, err := f.c.Device(ctx, "ublkb1")
	wantCode(t, err, api.CodeNotFound)
}

// TestManyDevices: a list of many devices is one search for their users, and one question
// to each server, as many at once as are asked at a time: one that hangs may let who asks wait.
func TestManyDevices(t *testing.T) {
	f := newFixture(t)
	f.stop()
	f.pace.ask, f.pace.check, f.pace.scan = 30*time.Second, time.Hour, time.Hour
	f.start()
	n := asksAtOnce()
	for i := range n {
		f.create(fmt.Sprintf("v%d", i), fmt.Sprintf("i%d", i))
	}
	counts := func(what string, scans, asked int) {
		t.Helper()
		f.h.mu.Lock()
		defer f.h.mu.Unlock()
		sum := 0
		for _, k := range f.h.asked {
			sum += k
		}
		if f.h.scans != scans || sum != asked {
			t.Errorf("%s: %d searches for users, want %d; %d questions to devices, want %d", what, f.h.scans, scans, sum, asked)
		}
		f.h.scans, f.h.asked = 0, map[string]int{}
	}
	together := func(do func()) {
		var gather sync.WaitGroup
		gather.Add(n)
		f.h.set(func() { f.h.gather, f.h.scans, f.h.asked = &gather, 0, map[string]int{} })
		do()
		f.h.set(func() { f.h.gather = nil })
	}
	together(func() {
		if snap, err := f.c.Snapshot(ctx); err != nil || len(snap.Devices) != n {
			t.Fatalf("%v", err)
		}
	})
	counts("list", 1, n)
	together(func() { f.metrics() })
	counts("metrics", 0, n)
	if snap, err := f.c.Brief(ctx); err != nil || len(snap.Devices) != n || snap.Devices[0].Users == nil {
		t.Fatalf("%v", err)
	}
	counts("list without users", 0, n)
	// A search that hangs leaves a list without users.
	hold := make(chan struct{})
	defer close(hold)
	f.m.search.Limit = 10 * time.Millisecond
	f.h.set(func() { f.h.scanHold = hold })
	if snap, err := f.c.Snapshot(ctx); err != nil || len(snap.Devices) != n || snap.Devices[0].Users == nil {
		t.Errorf("%v", err)
	}
}
