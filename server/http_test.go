package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/api"
)

// info is what a server says of itself.
func (h *host) info(name string) api.ServerInfo {
	h.t.Helper()
	h.up(name)
	resp, err := h.request(ctx, name, "GET", "/v1", nil)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	var info api.ServerInfo
	if err := json.NewDecoder(resp.Body).Decode(&info); err != nil {
		h.t.Fatal(err)
	}
	return info
}

func TestInfo(t *testing.T) {
	h := newHost(t)
	info := h.info("v")
	if info.API != api.APIVersion || info.Name != "v" || info.PID != os.Getpid() || info.Version != "test" || info.Phase != string(Empty) || info.Instance == "" || time.Since(info.Started) > time.Hour {
		t.Errorf("%+v", info)
	}
	h.create("v", "i")
	if now := h.info("v"); now.Phase != string(Serving) || now.Instance != info.Instance {
		t.Errorf("%+v", now)
	}
}

// TestSocket is for its owner alone, and goes with the server.
func TestSocket(t *testing.T) {
	h := newHost(t)
	path := filepath.Join(h.runDir(), "devices", "v", "sock")
	h.create("v", "i")
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	if err := h.Remove(ctx, "v", false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("it stays: %v", err)
	}
	// What a dead server has left is no obstacle.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	h.create("v", "i")
}

// TestOtherPaths are answered with an error that a program understands.
func TestOtherPaths(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	for _, r := range []struct{ method, path, body string }{
		{"PUT", "/v1/devices/w", `{"name":"w","images":[{"path":"/i"}]}`},
		{"GET", "/v1/devices/w", ""},
		{"DELETE", "/v1/devices/w", ""},
		{"PUT", "/v1/devices/w/leases/me", ""},
		{"GET", "/v1/devices", ""},
		{"POST", "/v1/devices", "{}"},
		{"POST", "/v1/devices/v", "{}"},
		{"GET", "/v1/devices/v/leave", ""},
		{"POST", "/v1/devices/v/none", "{}"},
		{"GET", "/", ""},
		{"GET", "/v2", ""},
		{"POST", "/v1", ""},
		{"PUT", "/v1/devices/v", `{"name":"w","images":[{"path":"/i"}]}`},
		{"PUT", "/v1/devices/v", `{"name":"v","images":[{"path":"/i"}],"colour":"red"}`},
		{"PUT", "/v1/devices/v", `{"name":`},
		{"PUT", "/v1/devices/v", ""},
		{"PUT", "/v1/devices/v", `{"name":"` + strings.Repeat("x", maxSpec) + `"}`},
		{"PUT", "/v1/devices/v/standby", `{"on":"maybe"}`},
		{"PUT", "/v1/devices/v/standby", `{"off":true}`},
		{"POST", "/v1/devices/v/replace", `[]`},
		{"POST", "/v1/devices/v/recover", ``},
		{"POST", "/v1/devices/v/leave", `{"now":true}`},
		{"DELETE", "/v1/devices/v?force=perhaps", ""},
		{"GET", "/v1/devices/v/events?since=-1", ""},
		{"GET", "/v1/devices/v/events?follow=x", ""},
		{"GET", "/v1/devices/v/wait?state=happy", ""},
	} {
		req, err := http.NewRequest(r.method, "http://holdfast"+r.path, strings.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := h.client("v").Do(req)
		if err != nil {
			t.Errorf("%s %s: %v", r.method, r.path, err)
			continue
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		var e api.Error
		if err := json.Unmarshal(text, &e); err != nil || resp.StatusCode != http.StatusBadRequest || e.Code != api.CodeInvalid || e.Message == "" {
			t.Errorf("%s %s %.60s: %s %s", r.method, r.path, r.body, resp.Status, text)
		}
	}
	if h.state("v") != api.StateLive {
		t.Error("it did something")
	}
}

// events are those that a query gives: what the journal says of itself, and the rest.
func (h *host) events(name, query string) (head api.Event, events []api.Event) {
	h.t.Helper()
	h.up(name)
	resp, err := h.request(ctx, name, "GET", "/v1/devices/"+name+"/events?"+query, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var e api.Event
		if err := dec.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			h.t.Fatal(err)
		}
		if head.Kind == "" {
			head = e
		} else {
			events = append(events, e)
		}
	}
	if head.Kind != api.EventJournal || head.Message == "" {
		h.t.Errorf("the first line is %+v", head)
	}
	return head, events
}

func texts(events []api.Event) (texts []string) {
	for _, e := range events {
		texts = append(texts, fmt.Sprint(e.Seq, " ", e.Message))
	}
	return texts
}

// TestEvents are numbered, kept over the server's death, and given from a number on.
func TestEvents(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	tell := func(message string, at time.Time) {
		h.k.device("v").event(api.Event{Time: at, Device: "v", Kind: api.EventParked, Message: message})
	}
	now := time.Now()
	tell("one", now)
	tell("two", now.Add(-time.Hour)) // the clock was set back
	tell("three", now.Add(-time.Minute))
	head, events := h.events("v", "")
	first := head.Seq - 3
	want := []string{fmt.Sprint(first, " one"), fmt.Sprint(first+1, " two"), fmt.Sprint(first+2, " three")}
	if got := texts(events); !slices.Equal(got[len(got)-3:], want) || head.Missed != 0 {
		t.Errorf("%v, want %v, %+v", got, want, head)
	}
	dev, err := h.Device(ctx, "v")
	if got := texts(dev.Events); err != nil || !slices.Equal(got[len(got)-3:], want) {
		t.Errorf("shown: %v, %v", got, err)
	}
	since := fmt.Sprintf("since=%d&boot=%s", first, head.Message)
	if _, events = h.events("v", since); !slices.Equal(texts(events), want[1:]) {
		t.Errorf("%v", texts(events))
	}
	// The next server goes on.
	h.kill("v")
	h.eventually("v", api.StateLive)
	tell("four", now)
	next, events := h.events("v", since)
	if got := texts(events); next.Message != head.Message || !slices.Equal(got[:2], want[1:]) || got[len(got)-1] != fmt.Sprint(next.Seq-1, " four") {
		t.Errorf("%v, %+v", got, next)
	}
	// A number of another journal means nothing here.
	if _, all := h.events("v", "since=1000&boot=other"); len(all) < 4 || !slices.Contains(texts(all), want[0]) {
		t.Errorf("%v", texts(all))
	}
	// Nor does one of the future.
	if _, all := h.events("v", fmt.Sprintf("since=1000000&boot=%s", head.Message)); len(all) < 4 {
		t.Errorf("%v", texts(all))
	}
	for i := range journalEvents + 10 {
		tell(fmt.Sprint(i), now)
	}
	head, events = h.events("v", since)
	if len(events) != journalEvents || events[len(events)-1].Seq != head.Seq-1 || head.Missed != events[0].Seq-1-first {
		t.Errorf("%d events, the first is %d, %+v", len(events), events[0].Seq, head)
	}
	if dev, err := h.Device(ctx, "v"); err != nil || len(dev.Events) != shownEvents || dev.Events[shownEvents-1].Message != fmt.Sprint(journalEvents+9) {
		t.Errorf("shown: %v, %v", texts(dev.Events), err)
	}
}

// TestEventsFollow gives events as they come, and the last before it ends.
func TestEventsFollow(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	resp, err := h.request(ctx, "v", "GET", "/v1/devices/v/events?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	until := func(message string) {
		t.Helper()
		for {
			var e api.Event
			if err := dec.Decode(&e); err != nil {
				t.Fatalf("%s: %v", message, err)
			}
			if e.Message == message {
				return
			}
		}
	}
	s, d := h.server("v"), h.k.device("v")
	d.event(api.Event{Device: "v", Kind: api.EventStandby, Message: "it is"})
	until("it is")
	other, hangUp := context.WithCancel(ctx)
	if _, err := h.request(other, "v", "GET", "/v1/devices/v/events?follow=true", nil); err != nil {
		t.Fatal(err)
	}
	hangUp()
	s.journal.Add(api.Event{Device: "v", Kind: api.EventRemoved, Message: "not yet read"})
	go s.Remove(ctx, false)
	until("not yet read")
	if err := dec.Decode(new(api.Event)); err != io.EOF {
		t.Errorf("at the server's end: %v", err)
	}
	h.exits("v")
}

// TestManyFailures has a device fail more requests than events are kept: others are there still.
func TestManyFailures(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	d := h.k.device("v")
	d.event(api.Event{Device: "v", Kind: api.EventStandby})
	for range 2 * journalEvents {
		d.event(api.Event{Device: "v", Kind: api.EventIOError})
	}
	_, events := h.events("v", "")
	count := map[string]int{}
	for _, e := range events {
		count[e.Kind]++
	}
	if count[api.EventStandby] != 1 || count[api.EventIOError] < 1 || count[api.EventIOError] > 2*ioErrorBurst {
		t.Errorf("%v", count)
	}
}
