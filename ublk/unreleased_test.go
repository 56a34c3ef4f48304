package ublk

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnreleasedByZombie: a process that nobody has waited for serves nothing any more.
func TestUnreleasedByZombie(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	info := Info{State: Live, ServerPID: pid}
	if (&Info{State: Live, ServerPID: os.Getpid()}).Unreleased() || info.Unreleased() {
		t.Error("a process that runs is taken for one that has ended")
	}
	in.Close()
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if !info.Unreleased() {
		t.Error("a process that has ended is taken for one that serves")
	}
	if err := cmd.Wait(); err != nil || !info.Unreleased() {
		t.Errorf("one that is gone: %v", err)
	}
}
