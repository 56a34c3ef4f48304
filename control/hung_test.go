package control

import (
	"io"
	"strings"
	"testing"
	"time"

	"holdfast/api"
)

// hang has a device's storage be as given.
func (f *fixture) hang(name string, o *api.OldestRequest, displaced ...api.Displaced) {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	d := f.k.live[name]
	d.oldest, d.displaced = o, displaced
}

// TestHungIsTold: whoever asks for a device that hangs is told so, and where, by every view.
func TestHungIsTold(t *testing.T) {
	f := newFixture(t)
	f.create("v", "base", "top")
	level, off, synced := 1, int64(8192), int64(-1)
	since := time.Now().Add(-90 * time.Second)
	why := func() string {
		t.Helper()
		snap, err := f.c.Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(api.Why(&snap.Devices[0], &snap.Key), " ")
	}
	has := func(text string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("%q doesn't say %q", text, w)
			}
		}
	}
	attr := func(path string) string {
		t.Helper()
		a, err := f.d.Attr("block/v/" + path)
		if err != nil {
			t.Fatal(err)
		}
		return a.Value
	}
	o := api.OldestRequest{Since: since, Seconds: 90, At: api.AtTransfer, Op: "write", Offset: 4096, Length: 512, File: "/img/top", Level: &level, FileOffset: &off}
	f.hang("v", &o)
	has(why(), "v is hung since "+api.Clock(since), "1m30s", "write of 512 bytes at offset 4096 of the disk", `offset 8192 of "/img/top" (level 1)`, "umount -f", "holdfast replace v FILE'", "--force")
	if strings.Contains(why(), "are served") {
		t.Errorf("%q", why())
	}
	dev, err := f.c.Device(ctx, "v")
	if err != nil {
		t.Fatal(err)
	}
	if dev.State != api.StateHung || dev.Oldest == nil || dev.Oldest.Seconds != 90 {
		t.Errorf("%+v", dev.Status)
	}
	has(dev.Problem, "hung since", "write of 512 bytes")
	has(dev.Advice, "replace v", "why v")
	if s, o := attr("state"), attr("oldest"); s != "hung" || o != "90" {
		t.Errorf("the tree says %s, %s", s, o)
	}
	resp, err := f.c.HTTP().Get("http://holdfast/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	has(string(text), `holdfast_oldest_request_seconds{device="v",where="under-way"} 90`, `holdfast_device_state{device="v",state="hung"} 1`)

	o.FileOffset = &synced
	has(why(), `a sync of "/img/top"`)
	base := 0
	o.Level = &base
	has(why(), "FILE --level 0")
	f.hang("v", &api.OldestRequest{Since: since, Seconds: 11, At: api.AtStorage, Op: "flush"})
	has(why(), "It is a flush, on the slow path, in a call to the storage", "top")
	f.hang("v", &api.OldestRequest{Since: since, Seconds: 11, At: api.AtWorker, Op: "write", Length: 1})
	has(why(), "waits for others")
	f.hang("v", &api.OldestRequest{Since: since, Seconds: 11, At: api.AtQueue})
	has(why(), "doesn't answer")
	// What another version leaves out harms nobody.
	dev.State, dev.Oldest = api.StateHung, nil
	api.Why(dev, &api.KeyInfo{})
}

// TestDisplacedIsTold: a device whose file is not the one at its path warns of it.
func TestDisplacedIsTold(t *testing.T) {
	f := newFixture(t)
	f.create("v", "base", "top")
	f.hang("v", nil, api.Displaced{Level: 1, Path: "/img/top", How: api.PathGone})
	dev, err := f.c.Device(ctx, "v")
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
	if a, err := f.d.Attr("block/v/image/displaced"); err != nil || a.Value != "1 gone" {
		t.Errorf("%+v, %v", a, err)
	}
	// That a path doesn't answer is no problem by itself.
	f.hang("v", nil, api.Displaced{Level: 1, Path: "/img/top", How: api.PathSilent})
	if dev, err = f.c.Device(ctx, "v"); err != nil || dev.Problem != "" {
		t.Errorf("%q, %v", dev.Problem, err)
	}
}

// TestBadRangeIsTold: who asks is told which places are bad.
func TestBadRangeIsTold(t *testing.T) {
	dev := &api.Device{Status: api.Status{Name: "v", State: api.StateLive}}
	dev.Standby.BadRanges = []api.BadRange{{Op: "read", Level: 1, File: "/img/top", Offset: 8192, Length: 4096, Errno: "EIO"}}
	if text := strings.Join(api.Why(dev, &api.KeyInfo{}), " "); !strings.Contains(text, `read of 4096 bytes at offset 8192 of "/img/top" (level 1): EIO`) {
		t.Errorf("%q", text)
	}
}
