package server

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"holdfast/api"
)

func TestLeases(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	_, err := h.Detach(ctx, "v", "a")
	wantCode(t, err, api.CodeNotFound)
	_, err = h.Attach(ctx, "w", "a")
	wantCode(t, err, api.CodeNotFound)
	for _, bad := range []string{"-a", "a b", strings.Repeat("x", 65), "ü"} {
		_, err = h.Attach(ctx, "v", bad)
		wantCode(t, err, api.CodeInvalid)
	}
	for range 2 { // idempotent
		if dev, err := h.Attach(ctx, "v", "a"); err != nil || !slices.Equal(dev.Standby.Consumers, []string{"a"}) {
			t.Fatalf("%+v, %v", dev, err)
		}
	}
	if _, err := h.Attach(ctx, "v", "b"); err != nil {
		t.Fatal(err)
	}
	if got := h.record("v").Leases; !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("recorded %v", got)
	}
	if _, err := h.Detach(ctx, "v", "b"); err != nil {
		t.Fatal(err)
	}
	// A lease outlives the server, with its device.
	h.restart("v")
	h.eventually("v", api.StateLost)
	if dev := h.create("v", "i"); !slices.Equal(dev.Standby.Consumers, []string{"a"}) {
		t.Errorf("after a death: %v", dev.Standby.Consumers)
	}
	// And goes with it.
	if err := h.Remove(ctx, "v", false); err != nil {
		t.Fatal(err)
	}
	if dev := h.create("v", "i"); len(dev.Standby.Consumers) != 0 {
		t.Errorf("of a new device: %v", dev.Standby.Consumers)
	}
}

// targetLease takes or drops the lease of a target that was seen.
func (h *host) targetLease(method, name, kind string) (*api.Device, error) {
	h.t.Helper()
	return call[api.Device](ctx, h, name, method, "/leases/"+url.PathEscape(kind)+"?target=true", nil)
}

// TestTargetLeases are told again and again, recorded apart from those taken by hand, and survive
// the server.
func TestTargetLeases(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	consumers := func(want ...string) {
		t.Helper()
		dev, err := h.Device(ctx, "v")
		if err != nil || !slices.Equal(dev.Standby.Consumers, want) {
			t.Errorf("consumers %v, want %v, %v", dev.Standby.Consumers, want, err)
		}
	}
	for range 2 {
		if _, err := h.targetLease("DELETE", "v", "lio"); err != nil { // there is none
			t.Error(err)
		}
	}
	for range 2 {
		if dev, err := h.targetLease("PUT", "v", "lio"); err != nil || !slices.Equal(dev.Standby.Consumers, []string{"lio"}) {
			t.Fatalf("%+v, %v", dev, err)
		}
	}
	if rec := h.record("v"); len(rec.Leases) != 0 || !slices.Equal(rec.TargetLeases, []string{"lio"}) {
		t.Errorf("recorded %v, %v", rec.Leases, rec.TargetLeases)
	}
	h.kill("v")
	h.eventually("v", api.StateLive)
	consumers("lio")
	// By hand a target's lease can neither be dropped, nor does the target drop one taken by hand.
	_, err := h.Detach(ctx, "v", "lio")
	wantCode(t, err, api.CodeNotFound)
	consumers("lio")
	if _, err := h.Attach(ctx, "v", "lio"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.targetLease("DELETE", "v", "lio"); err != nil {
		t.Fatal(err)
	}
	consumers("lio")
	if _, err := h.Detach(ctx, "v", "lio"); err != nil {
		t.Fatal(err)
	}
	consumers()
	if rec := h.record("v"); len(rec.Leases) != 0 || len(rec.TargetLeases) != 0 {
		t.Errorf("recorded %v, %v", rec.Leases, rec.TargetLeases)
	}
	_, err = call[api.Device](ctx, h, "v", "PUT", "/leases/lio?target=maybe", nil)
	wantCode(t, err, api.CodeInvalid)
}

// TestLeaseNotDurable has a state directory that takes nothing: a lease that would be
// forgotten isn't given, but to a target, which is seen anew anyway.
func TestLeaseNotDurable(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.unwritable(func() {
		_, err := h.Attach(ctx, "v", "a")
		wantCode(t, err, api.CodeInternal)
		if dev, err := h.targetLease("PUT", "v", "lio"); err != nil || !slices.Equal(dev.Standby.Consumers, []string{"lio"}) {
			t.Errorf("%+v, %v", dev, err)
		}
	})
	if _, err := h.Attach(ctx, "v", "a"); err != nil {
		t.Error(err)
	}
}

func TestSetStandby(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	_, err := h.SetStandby(ctx, "v", true)
	e := wantCode(t, err, api.CodeNotSupported)
	if !strings.Contains(e.Message, "standby-check on") || !strings.Contains(e.Message, "attach v") {
		t.Errorf("%q", e.Message)
	}
	h.arm("v")
	dev, err := h.SetStandby(ctx, "v", true)
	if err != nil || dev.Standby.Value != "on" || dev.State != api.StateStandby || dev.Problem == "" || !strings.Contains(dev.Advice, "holdfast replace v --top") {
		t.Fatalf("%+v, %v", dev, err)
	}
	if dev, err = h.SetStandby(ctx, "v", false); err != nil || dev.Standby.Value != "off" || dev.Problem != "" {
		t.Fatalf("%+v, %v", dev, err)
	}
	// The key works without anybody's asking.
	h.SetKey(false)
	waitFor(t, "the key", func() bool { dev, err := h.Device(ctx, "v"); return err == nil && dev.Standby.Value == "not supported" })
}

// A change that was refused, as it could not be recorded, does not come true by a death.
func TestRefusedChangeStaysRefused(t *testing.T) {
	h := newHost(t)
	h.create("v", "old")
	h.unwritable(func() {
		if _, err := h.Replace(ctx, "v", api.ReplaceRequest{Image: h.image("new")}); err == nil {
			t.Error("a replacement that can't be recorded")
		}
		if _, err := h.Attach(ctx, "v", "me"); err == nil {
			t.Error("a lease that can't be recorded")
		}
	})
	h.create("w", "new") // it is nobody's
	h.kill("v")
	if v := h.eventually("v", api.StateLive); v.Images[0].Path != h.image("old").Path || len(v.Standby.Consumers) != 0 {
		t.Errorf("%+v, %+v", v.Images, v.Standby.Consumers)
	}
}

// What is so already is not forgotten for having been noted in the copy only.
func TestStandbyIsInTheCopy(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.arm("v")
	h.unwritable(func() {
		if _, err := h.SetStandby(ctx, "v", true); err != nil {
			t.Fatal(err)
		}
		h.server("v").ledger.recordStandby(h.k.device("v"))
		if _, err := h.targetLease("PUT", "v", "lio"); err != nil {
			t.Fatal(err)
		}
	})
	h.kill("v")
	if v := h.eventually("v", api.StateStandby); !slices.Equal(v.Standby.Consumers, []string{"lio", "test"}) {
		t.Errorf("%v", v.Standby.Consumers)
	}
}

// TestWhy reads what a person would.
func TestWhy(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	has := func(words ...string) {
		t.Helper()
		dev, err := h.Device(ctx, "v")
		if err != nil {
			t.Fatal(err)
		}
		on := h.server("v").sw.On()
		key := &api.KeyInfo{On: on}
		if on {
			key.Holders = []string{"hand"}
		}
		text := strings.Join(api.Why(dev, key), " ")
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("%q doesn't say %q", text, w)
			}
		}
	}
	has("v is live since", "reach its users at once", "standby-check on", "attach v")
	h.arm("v")
	has("will be held", "hand", "test")
	if _, err := h.SetStandby(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	has("in standby since", "of at most 128", "by hand", "1 consumer", "holdfast replace v --top", "standby v off")
	if _, err := h.Detach(ctx, "v", "test"); err != nil {
		t.Fatal(err)
	}
	has("marked in standby all the same", "no consumer has a lease")
	h.restart("v")
	h.eventually("v", api.StateLost)
	has("v is lost", "its server", fmt.Sprint("process ", pid()))
}
