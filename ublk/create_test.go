package ublk

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A Create that fails halfway leaves nothing behind.
func TestFailedCreate(t *testing.T) {
	c := control(t)
	before, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	// Ever more descriptors are to be had, until it succeeds: each step of Create
	// has failed once.
	ram := newRAM(t, 1<<20, false)
	open := len(fds(t))
	failed := 0
	for extra := 0; ; extra++ {
		if extra > 64 {
			t.Fatal("no number of descriptors is enough")
		}
		low := lim
		low.Cur = uint64(open + extra)
		unix.Setrlimit(unix.RLIMIT_NOFILE, &low)
		d, err := c.Create(t.Context(), Config{ID: -1, Size: 1 << 20, Queues: 2, Files: 4}, ram)
		unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
		if err == nil {
			if err := d.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			break
		}
		failed++
		if !errors.Is(err, unix.EMFILE) {
			t.Fatalf("with %d descriptors: %v", extra, err)
		}
	}
	if failed < 2 {
		t.Errorf("failed only %d times", failed)
	}
	after, err := c.List()
	if err != nil || fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("devices before %v, after %v (%v)", before, after, err)
	}
	if now := len(fds(t)); now > open {
		t.Errorf("%d descriptors before, %d after", open, now)
	}
}

func fds(t *testing.T) []os.DirEntry {
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return e
}
