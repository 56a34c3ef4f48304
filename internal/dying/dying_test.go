package dying

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Those that are killed and can't end are the matter of manager/launch and of hack/kill
// (TestElsewhere).
func TestProcess(t *testing.T) {
	dying := func(pid int) bool { _, yes := Process(pid); return yes }
	if dying(os.Getpid()) || dying(1) {
		t.Error("a process that runs is taken for one that was killed")
	}
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if dying(cmd.Process.Pid) {
		t.Error("a process that has ended is taken for one that can't")
	}
	if err := cmd.Wait(); err != nil || dying(cmd.Process.Pid) {
		t.Errorf("one that is gone: %v", err)
	}
}

func BenchmarkProcess(b *testing.B) {
	for b.Loop() {
		Process(os.Getpid())
	}
}
