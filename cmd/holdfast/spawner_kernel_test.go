package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"holdfast/hack/faultfs"
)

// TestHookWhileStorageHangs puts a device into standby while nothing of its storage answers,
// closes neither. Its hook is run, and another device goes on. Without the spawner
// the hook would begin when the trouble is over.
func TestHookWhileStorageHangs(t *testing.T) {
	needKernel(t)
	exec.Command("modprobe", "fuse").Run() // may be built in
	t.Setenv("GOGC", "10")                 // what stops the world is to come often
	t.Run("spawner", func(t *testing.T) {
		h := hangUnderHook(t)
		h.d.until("the hook", h.hooked)
		if n := h.storage.Rule(h.flush).Hanging; n != 0 {
			t.Errorf("%d closes hang", n)
		}
		if err := <-dd(h.other); err != nil {
			t.Errorf("the other device: %v", err)
		}
		if r := h.d.holdfast("list"); r.code != 0 {
			t.Errorf("exit %d: %s", r.code, r.errors)
		}
		h.finish()
	})
	t.Run("direct", func(t *testing.T) {
		t.Setenv(noSpawner, "yes")
		h := hangUnderHook(t)
		h.d.until("a close that hangs", func() bool { return h.storage.Rule(h.flush).Hanging > 0 })
		other := dd(h.other)
		select {
		case err := <-other:
			t.Logf("the other device: %v", err)
		case <-time.After(5 * time.Second):
			t.Log("the other device stands still, too")
			defer func() { <-other }()
		}
		if h.hooked() {
			t.Error("the hook was run without a spawner, and this test shows nothing")
		}
		h.storage.Clear()
		h.d.until("the hook", h.hooked)
		h.finish()
	})
}

type hungHook struct {
	d       dir
	storage *faultfs.Storage
	flush   int
	other   string // a disk on storage that works
	turned  chan result
}

func hangUnderHook(t *testing.T) *hungHook {
	t.Helper()
	h := &hungHook{d: newDir(t)}
	storage, err := faultfs.Mount(t.TempDir(), t.TempDir(), faultfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	h.storage = storage
	hook := h.d.file("hook")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho $HOLDFAST_DEVICE >"+h.d.file("hooked")+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.d.ok("image", "create", "--size", "64M", storage.Backing+"/a.hds")
	h.d.daemon("--no-sysfs", "--targets", "none")
	t.Cleanup(func() { storage.Close() }) // before the daemon's end, which waits for it
	h.d.ok("create", "a", "--image", storage.Dir+"/a.hds", "--on-standby", hook)
	h.other = strings.TrimSpace(h.d.create("b"))
	h.d.ok("standby-check", "on")
	h.d.ok("attach", "a", "--consumer", "me")
	h.flush = storage.Add(faultfs.Rule{Op: faultfs.Flush, Hang: true})
	storage.Add(faultfs.Rule{Hang: true}) // and everything else
	h.turned = make(chan result, 1)
	// Not to be waited for: who looks at all processes, as the daemon does for an answer,
	// waits for one that hangs in execve (seen on Linux 6.12, for its namespaces).
	go func() { h.turned <- h.d.holdfast("standby", "a", "on") }()
	return h
}

func (h *hungHook) hooked() bool {
	b, _ := os.ReadFile(h.d.file("hooked"))
	return string(b) == "a\n"
}

func (h *hungHook) finish() {
	h.d.t.Helper()
	h.storage.Clear()
	if r := <-h.turned; r.code != 0 {
		h.d.t.Errorf("exit %d: %s", r.code, r.errors)
	}
	h.d.ok("standby", "a", "off")
	h.d.ok("remove", "a")
	h.d.ok("remove", "b")
}
