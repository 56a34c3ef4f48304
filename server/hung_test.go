package server

import (
	"strings"
	"testing"
	"time"

	"holdfast/api"
)

// hang has a device's storage be as given.
func (h *host) hang(name string, o *api.OldestRequest, displaced ...api.Displaced) {
	h.k.mu.Lock()
	defer h.k.mu.Unlock()
	d := h.k.live[name]
	d.oldest, d.displaced = o, displaced
}

// TestHungIsReported: whoever asks for a device that hangs is told so, and where, by every view.
func TestHungIsReported(t *testing.T) {
	h := newHost(t)
	h.create("v", "base", "top")
	level, off, synced := 1, int64(8192), int64(-1)
	since := time.Now().Add(-90 * time.Second)
	why := func() string {
		t.Helper()
		dev, err := h.Device(ctx, "v")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(api.Why(dev, &api.KeyInfo{}), " ")
	}
	has := func(text string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("%q doesn't say %q", text, w)
			}
		}
	}
	o := api.OldestRequest{Since: since, Seconds: 90, At: api.AtTransfer, Op: "write", Offset: 4096, Length: 512, File: "/img/top", Level: &level, FileOffset: &off}
	h.hang("v", &o)
	has(why(), "v is hung since "+api.Clock(since), "1m30s", "write of 512 bytes at offset 4096 of the disk", `offset 8192 of "/img/top" (level 1)`, "umount -f", "holdfast replace v FILE'", "--force")
	if strings.Contains(why(), "are served") {
		t.Errorf("%q", why())
	}
	dev, err := h.Device(ctx, "v")
	if err != nil {
		t.Fatal(err)
	}
	if dev.State != api.StateHung || dev.Oldest == nil || dev.Oldest.Seconds != 90 {
		t.Errorf("%+v", dev.Status)
	}
	has(dev.Problem, "hung since", "write of 512 bytes")
	has(dev.Advice, "replace v", "why v")
	o.FileOffset = &synced
	has(why(), `a sync of "/img/top"`)
	base := 0
	o.Level = &base
	has(why(), "FILE --level 0")
	h.hang("v", &api.OldestRequest{Since: since, Seconds: 11, At: api.AtStorage, Op: "flush"})
	has(why(), "It is a flush, on the slow path, in a call to the storage", "top")
	h.hang("v", &api.OldestRequest{Since: since, Seconds: 11, At: api.AtWorker, Op: "write", Length: 1})
	has(why(), "waits for others")
	h.hang("v", &api.OldestRequest{Since: since, Seconds: 11, At: api.AtQueue})
	has(why(), "doesn't answer")
	// What another version leaves out harms nobody.
	dev.State, dev.Oldest = api.StateHung, nil
	api.Why(dev, &api.KeyInfo{})
}

// TestDisplacedIsReported: a device whose file is not the one at its path warns of it.
func TestDisplacedIsReported(t *testing.T) {
	h := newHost(t)
	h.create("v", "base", "top")
	h.hang("v", nil, api.Displaced{Level: 1, Path: "/img/top", How: api.PathGone})
	dev, err := h.Device(ctx, "v")
	if err != nil {
		t.Fatal(err)
	}
	if dev.State != api.StateLive || !strings.Contains(dev.Problem, `"/img/top"`) || dev.Advice == "" {
		t.Errorf("%s, %q, %q", dev.State, dev.Problem, dev.Advice)
	}
	text := strings.Join(api.Why(dev, &api.KeyInfo{}), " ")
	for _, w := range []string{"is live since", "no longer at its path", "deleted or renamed", "holdfast replace v FILE --level 1", dev.Path} {
		if strings.Count(text, w) != 1 {
			t.Errorf("%q says %q %d times", text, w, strings.Count(text, w))
		}
	}
	// That a path doesn't answer is no problem by itself.
	h.hang("v", nil, api.Displaced{Level: 1, Path: "/img/top", How: api.PathSilent})
	if dev, err = h.Device(ctx, "v"); err != nil || dev.Problem != "" {
		t.Errorf("%q, %v", dev.Problem, err)
	}
}
