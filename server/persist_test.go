package server

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"holdfast/api"
)

func TestPersist(t *testing.T) {
	h := newHost(t)
	h.persistent("a")
	if _, err := h.Attach(ctx, "a", "me"); err != nil {
		t.Fatal(err)
	}
	if _, err := call[api.Device](ctx, h, "a", "PUT", "/leases/lio?target=true", nil); err != nil {
		t.Fatal(err)
	}
	h.stop("a")
	if rec := h.record("a"); !rec.Closed || rec.ID != -1 || rec.TargetLeases != nil {
		t.Fatalf("%+v", rec)
	}
	// It was closed cleanly: its image may be another one since, and a mark on it is not ours.
	path := h.image("a").Path
	if err := errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	dev := h.eventually("a", api.StateLive)
	if h.k.isTaken("a") {
		t.Error("marks on an image that had been closed were taken for ours")
	}
	if !slices.Equal(dev.Standby.Consumers, []string{"me"}) || !dev.Persist || dev.Problem != "" {
		t.Errorf("%+v", dev)
	}

	// The machine goes down with it: the mark is ours then.
	h.lose("a")
	rec := h.record("a")
	if rec.Closed {
		t.Fatalf("%+v", rec)
	}
	rec.BootID = "another"
	if err := errors.Join(h.records().Save(rec), os.RemoveAll(filepath.Join(h.runDir(), "devices"))); err != nil {
		t.Fatal(err)
	}
	h.k.set(func() { clear(h.k.dead) })
	h.eventually("a", api.StateLive)
	if !h.k.isTaken("a") {
		t.Error("the mark of the server before was not taken over")
	}

	if err := h.Remove(ctx, "a", false); err != nil {
		t.Fatal(err)
	}
	if s := h.state("a"); s != "" {
		t.Errorf("a removed device is back: %s", s)
	}
}

func TestPersistWaits(t *testing.T) {
	h := newHost(t)
	for _, name := range []string{"a", "b", "c"} {
		h.persistent(name)
		h.stop(name)
	}
	a := h.image("a").Path
	if err := os.Rename(a, a+".away"); err != nil {
		t.Fatal(err)
	}
	h.k.setOpenErr(errors.New("not today"))
	for _, name := range []string{"a", "b", "c"} {
		waitFor(t, "the first try", func() bool {
			dev := h.eventually(name, api.StateWaiting)
			return dev.Problem != "it is about to be created again" && dev.Problem != "" && dev.Advice != ""
		})
	}
	if p := h.server("a").Unanswered(); p != 0 {
		t.Errorf("it owes %v", p)
	}
	// It can be had by hand, and given up.
	if err := h.Remove(ctx, "c", false); err != nil {
		t.Fatal(err)
	}
	// Who tries by hand what is tried again and again anyway does not end that.
	spec := h.spec("b", "b")
	spec.Persist = true
	if _, err := h.Create(ctx, spec); err == nil {
		t.Error("no error")
	}
	h.eventually("b", api.StateWaiting)
	h.k.setOpenErr(nil)
	h.eventually("b", api.StateLive)
	if s := h.state("a"); s != api.StateWaiting {
		t.Errorf("without its image: %s", s)
	}
	if err := os.Rename(a+".away", a); err != nil {
		t.Fatal(err)
	}
	h.server("a").creation.mounts.Broadcast()
	h.eventually("a", api.StateLive)
	if s := h.state("c"); s != "" {
		t.Errorf("what was given up is back: %s", s)
	}
	// A server that ends while it waits keeps what it has.
	h.stop("a")
	h.k.setOpenErr(errors.New("not today"))
	h.eventually("a", api.StateWaiting)
	h.stop("a")
	if rec := h.record("a"); !rec.Closed {
		t.Errorf("%+v", rec)
	}
	h.k.setOpenErr(nil)
	h.eventually("a", api.StateLive)
}
