package api

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Those that are killed and can't end are hack/kill's matter (TestElsewhere).
func TestDying(t *testing.T) {
	if Dying(os.Getpid()) || Dying(1) {
		t.Error("a process that runs is taken for one that was killed")
	}
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if Dying(cmd.Process.Pid) {
		t.Error("a process that has ended is taken for one that can't")
	}
	if err := cmd.Wait(); err != nil || Dying(cmd.Process.Pid) {
		t.Errorf("one that is gone: %v", err)
	}
}
