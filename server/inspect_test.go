package server

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop"
)

// over is a context whose time is over.
func over(t *testing.T) context.Context {
	short, cancel := context.WithDeadline(ctx, time.Now())
	t.Cleanup(cancel)
	return short
}

func imagesAt(path string) []ploop.ImageRef { return []ploop.ImageRef{{Path: path}} }

// TestInspectionWaits: an inspection that was given up, as on a machine that is slow, is no verdict
// on the next one of the same files: that one waits for its end, and then takes place.
func TestInspectionWaits(t *testing.T) {
	var in inspections
	slow, first := make(chan struct{}), imagesAt("/slow")
	if err := in.inspect(over(t), first, func() error { <-slow; return errors.New("too late for anybody") }); api.CodeOf(err) != api.CodeImage || !strings.Contains(err.Error(), "has not answered since") {
		t.Errorf("given up: %v", err)
	}
	second, began := make(chan error, 1), make(chan struct{})
	go func() {
		second <- in.inspect(ctx, first, func() error { close(began); return errors.New("its own answer") })
	}()
	// Others have nothing to wait for.
	if err := in.inspect(ctx, imagesAt("/other"), func() error { return nil }); err != nil {
		t.Errorf("other files: %v", err)
	}
	select {
	case <-began:
		t.Error("two at once of the same files")
	case err := <-second:
		t.Errorf("not waited for: %v", err)
	default:
	}
	close(slow)
	if err := <-second; err == nil || err.Error() != "its own answer" {
		t.Errorf("the second: %v", err)
	}
	// Nothing is under way when one has returned.
	for range 100 {
		err := in.inspect(ctx, first, func() error { return nil })
		if is := in.unanswered(refs(first)); err != nil || is != nil {
			t.Fatalf("%v, and then %v", err, is)
		}
	}
}

// TestInspectionsThatHang: whoever asks is told so when his time is over, in the same words each
// time, and few goroutines hang however often that is, whatever the files.
func TestInspectionsThatHang(t *testing.T) {
	var in inspections
	hang, before := make(chan struct{}), runtime.NumGoroutine()
	said := ""
	for range 20 {
		err := in.inspect(over(t), imagesAt("/hung"), func() error { <-hang; return nil })
		if api.CodeOf(err) != api.CodeImage || said != "" && err.Error() != said {
			t.Fatalf("%v, and before %s", err, said)
		}
		said = err.Error()
	}
	for i := range 20 {
		if err := in.inspect(over(t), imagesAt(fmt.Sprintf("/hung%d", i)), func() error { <-hang; return nil }); api.CodeOf(err) != api.CodeImage {
			t.Fatal(err)
		}
	}
	if n := runtime.NumGoroutine() - before; n > mostInspections {
		t.Errorf("40 inspections that hang are %d goroutines", n)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := in.inspect(gone, imagesAt("/hung"), func() error { return nil }); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "hang") {
		t.Errorf("who hung up himself: %v", err)
	}
	close(hang)
	if err := in.inspect(ctx, imagesAt("/hung"), func() error { return nil }); err != nil {
		t.Errorf("once the storage is back: %v", err)
	}
}

// hung has the storage of the images of a spec not answer, until the end of the test.
func (h *host) hung(s *Server, spec api.Spec) {
	h.t.Helper()
	end, err := s.inspections.begin(ctx, refs(spec.Images))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(end)
}

// A persistent device whose storage hangs holds up neither an upgrade nor the server's end.
func TestHangingPersistentDevice(t *testing.T) {
	h := newHost(t)
	h.persistent("a")
	h.stop("a")
	h.k.setOpenErr(errors.New("not today"))
	h.times.inspect = 20 * time.Millisecond
	h.eventually("a", api.StateWaiting)
	spec := h.spec("a", "a")
	spec.Persist = true
	h.hung(h.server("a"), spec)
	_, err := h.Create(ctx, spec)
	wantCode(t, err, api.CodeImage)
	if err := h.Leave(ctx, "a"); err != nil {
		t.Errorf("leave: %v", err)
	}
	h.times.inspect = patience
	h.eventually("a", api.StateWaiting)
	h.hung(h.server("a"), spec)
	h.stop("a")
}

// TestRecoveryWhoseStorageHangs: while the storage of a device's images owes an answer, the device
// can be given a file elsewhere.
func TestRecoveryWhoseStorageHangs(t *testing.T) {
	h := newHost(t)
	h.times.inspect = time.Hour // whoever waited for the storage would have the turn for so long
	h.create("v", "i")
	h.kill("v")
	h.k.setOpenErr(errors.New("not today"))
	h.eventually("v", api.StateRecovering)
	s := h.server("v")
	h.hung(s, h.spec("v", "i"))
	waitFor(t, "that it is told", func() bool {
		dev := s.Device()
		return strings.Contains(dev.Problem, "has not answered since")
	})
	h.k.setOpenErr(nil)
	if dev, err := h.Replace(ctx, "v", api.ReplaceRequest{Image: h.image("elsewhere"), Force: true}); err != nil || dev.State != api.StateLive {
		t.Fatalf("%+v, %v", dev, err)
	}
}
