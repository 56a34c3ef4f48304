package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/server/device"
)

// TestUnreleased: the driver takes a device for served, and its server is gone. It has a state of
// its own, says who holds it, and can't be given up; once it is released it is recovered.
func TestUnreleased(t *testing.T) {
	h := newHost(t)
	h.create("a", "img")
	if err := h.server("a").opened(device.Opened{Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	h.kill("a")
	h.k.set(func() { h.k.kept = map[int]bool{0: true} })
	h.eventually("a", api.StateUnreleased)
	dev, err := h.Device(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(dev.Problem, "process 1 (init)") || !strings.Contains(dev.Problem, "/dev/ublkc0") {
		t.Errorf("problem %q", dev.Problem)
	}
	if dev.Size != 64<<20 {
		t.Errorf("size %d", dev.Size)
	}
	if why := strings.Join(api.Why(dev, &api.KeyInfo{}), "\n"); !strings.Contains(why, "unreleased") || !strings.Contains(why, "process 1 (init)") {
		t.Errorf("why:\n%s", why)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if e := wantCode(t, h.Remove(ctx, "a", true), api.CodeBusy); !strings.Contains(e.Message, "process 1 (init)") {
		t.Error(e)
	}
	if s := h.state("a"); s != api.StateUnreleased {
		t.Errorf("after a removal that failed: %s", s)
	}
	h.k.set(func() { h.k.kept = nil })
	h.eventually("a", api.StateLive)
}

// TestUnreleasedBehindLock: what keeps the server's file may keep the locks of its images as well,
// which is what recovering meets first.
func TestUnreleasedBehindLock(t *testing.T) {
	h := newHost(t)
	h.create("a", "img")
	h.kill("a")
	h.k.setOpenErr(fmt.Errorf("img: %w", ploop.ErrLocked))
	waitFor(t, "the lock", func() bool {
		d, err := h.Device(t.Context(), "a")
		return err == nil && strings.Contains(d.Problem, "locked")
	})
	if s := h.state("a"); s != api.StateRecovering {
		t.Errorf("released, and %s", s)
	}
	h.k.set(func() { h.k.kept = map[int]bool{0: true} })
	h.eventually("a", api.StateUnreleased)
	h.k.set(func() { h.k.kept, h.k.openErr = nil, nil })
	h.eventually("a", api.StateLive)
}

// TestHolders finds who keeps a server's file.
func TestHolders(t *testing.T) {
	proc := t.TempDir()
	for path, text := range map[string]string{
		"7/comm": "sleep\n", "8/comm": "cat\n", "9/comm": "kworker/0:1+events\n", "10/comm": "kworker/0:2\n",
		"9/stack":  "[<0>] folio_wait_bit+0x1/0x2\n[<0>] filemap_write_and_wait_range+0x1/0x2\n[<0>] bdev_release+0x1/0x2\n[<0>] __fput+0x1/0x2\n[<0>] delayed_fput+0x1/0x2\n",
		"10/stack": "[<0>] worker_thread+0x1/0x2\n",
	} {
		if err := os.MkdirAll(filepath.Join(proc, filepath.Dir(path), "fd"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for at, to := range map[string]string{"7/fd/3": "/dev/ublkc4", "8/fd/3": "/dev/ublkc40"} {
		if err := os.Symlink(to, filepath.Join(proc, at)); err != nil {
			t.Fatal(err)
		}
	}
	got := holdersOf(proc, 4)
	for _, want := range []string{"process 7 (sleep)", "kernel thread 9 (kworker/0:1+events)", "bdev_release"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q isn't in %q", want, got)
		}
	}
	for _, not := range []string{"process 8", "thread 10"} {
		if strings.Contains(got, not) {
			t.Errorf("%q is in %q", not, got)
		}
	}
	if got := holdersOf(proc, 5); strings.Contains(got, "process") {
		t.Error(got)
	}
}

// TestHoldersWhileSomebodySearches: a search that is under way is waited for, and is no answer.
func TestHoldersWhileSomebodySearches(t *testing.T) {
	holdersSearch <- struct{}{}
	if got := findHolders(t.TempDir(), 4, time.Millisecond); !strings.Contains(got, "has not ended") {
		t.Errorf("%q while another search hangs", got)
	}
	found := make(chan string, 1)
	go func() { found <- findHolders(t.TempDir(), 4, patience) }()
	<-holdersSearch
	if got := <-found; got != "" {
		t.Errorf("%q after another search", got)
	}
}
