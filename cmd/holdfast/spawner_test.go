package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestSpawnerDies: a daemon without its spawner says so, serves on, and starts no program.
func TestSpawnerDies(t *testing.T) {
	d := newDir(t)
	daemon := d.daemon()
	killed := 0
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, _ := os.ReadFile(path)
		_, rest, _ := bytes.Cut(b, []byte(") "))
		var state string
		var pid, parent int
		fmt.Sscan(string(b), &pid)
		fmt.Sscan(string(rest), &state, &parent)
		if parent == daemon.Process.Pid {
			syscall.Kill(pid, syscall.SIGKILL)
			killed++
		}
	}
	if killed != 1 {
		t.Fatalf("the daemon has %d children, not one", killed)
	}
	d.until("the log of it", func() bool { return bytes.Contains(d.read("log"), []byte("no hook can be run")) })
	d.fails(1, "the process that starts programs for this one is gone", "upgrade")
	if r := d.holdfast("list"); r.code != 0 {
		t.Errorf("exit %d: %s", r.code, r.errors)
	}
}
