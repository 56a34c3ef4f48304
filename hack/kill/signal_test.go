package kill

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStopped: a server that is stopped by a signal, for HOLDFAST_STOP seconds, and
// continued, goes on; its users see a pause.
func TestStopped(t *testing.T) {
	needSoak(t)
	pause := time.Duration(count(t, "HOLDFAST_STOP", 3)) * time.Second
	s := newServer(t, "--targets", "none")
	g := threeDeltas(t, t.TempDir(), 64<<20, 41)
	w := s.serve("stopped", g, 12)
	requeued, failed := countRequests(t, "block_rq_requeue", w.disk), countRequests(t, "block_rq_error", w.disk)
	w.advances(100)
	must(t, s.process.Signal(syscall.SIGSTOP))
	time.Sleep(pause)
	must(t, s.process.Signal(syscall.SIGCONT))
	w.advances(200)
	if d, err := s.client.Device(t.Context(), "stopped"); err != nil || d.State != "live" || d.Problem != "" {
		t.Errorf("%+v, %v", d, err)
	}
	if requeued.hits() != 0 || failed.hits() != 0 {
		t.Errorf("%d requests were reissued, %d failed", requeued.hits(), failed.hits())
	}
	t.Logf("stopped for %v: the slowest request took %v, none failed; %v", pause, round(w.Longest()), w)

	// And killed while it is stopped, which nobody can keep from working.
	must(t, s.process.Signal(syscall.SIGSTOP))
	s.kill()
	s.restart("stopped")
	w.advances(50)
	s.remove("stopped", w)
}

const cgroup = "/sys/fs/cgroup/holdfast-kill"

// TestOutOfMemory: the kernel's OOM killer is a kill like any other.
func TestOutOfMemory(t *testing.T) {
	needSoak(t)
	must(t, os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory"), 0))
	must(t, os.Mkdir(cgroup, 0o755))
	t.Cleanup(func() {
		if err := wait(time.Minute, func() error { return os.Remove(cgroup) }); err != nil {
			t.Error(err)
		}
	})
	s := makeServer(t, "--targets", "none")
	g := oneDelta(t, t.TempDir(), 32<<20, 42)
	// All that it has is the group's from the start.
	plain := s.program
	s.program = s.dir + "/holdfast"
	must(t, os.WriteFile(s.program, []byte("#!/bin/sh\necho $$ >"+cgroup+"/cgroup.procs\nexec "+plain+" \"$@\"\n"), 0o700))
	s.start()
	s.answers()
	s.program = plain
	w := s.serve("oom", g, 12)
	failed := countRequests(t, "block_rq_error", w.disk)
	w.advances(100)
	go os.WriteFile(cgroup+"/memory.max", []byte("4M"), 0)
	s.dies(time.Minute)
	events, err := os.ReadFile(cgroup + "/memory.events")
	must(t, err)
	if strings.Contains(string(events), "oom_kill 0\n") { // it may have met the spawner as well
		t.Errorf("it was not the OOM killer: %s", events)
	}
	took := s.restart("oom")
	if n := s.recoveries("oom"); n != 1 || failed.hits() != 0 {
		t.Errorf("%d recoveries, %d failed requests", n, failed.hits())
	}
	w.advances(50)
	t.Logf("killed for memory, serving again %v after the next start", round(took))
	s.remove("oom", w)
}

// TestFio: fio verifies what it writes, on one device, while the server is killed.
func TestFio(t *testing.T) {
	needSoak(t)
	kills := count(t, "HOLDFAST_VARIANT_KILLS", 2)
	s := newServer(t, "--targets", "none")
	g := threeDeltas(t, t.TempDir(), 64<<20, 43)
	disk := s.ok(append([]string{"create", "fio"}, g.arguments()...)...)
	requeued, failed := countRequests(t, "block_rq_requeue", disk), countRequests(t, "block_rq_error", disk)
	dir := t.TempDir()
	cmd := exec.Command("fio", "--name=kill", "--filename="+disk, "--direct=1", "--ioengine=libaio", "--rw=randwrite", "--bsrange=4k-64k",
		"--iodepth=16", "--fsync=64", "--size=64m", "--io_size=4g", "--time_based", "--runtime=100000",
		"--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--allow_file_create=0", "--serialize_overlap=1")
	cmd.Dir = dir
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	recovered := 0
	writes := func() uint64 {
		d, err := s.client.Device(t.Context(), "fio")
		must(t, err)
		return d.Counters.Writes
	}
	busy := func() {
		t.Helper()
		from := writes()
		if err := wait(2*time.Minute, func() error {
			if n := writes() - from; n < 300 {
				return fmt.Errorf("%d writes", n)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for range kills {
		busy()
		s.kill()
		s.restart("fio")
		recovered += s.recoveries("fio")
	}
	busy()
	cmd.Process.Signal(syscall.SIGINT) // it ends as if its time were over
	select {
	case err := <-ended:
		// 128: it was interrupted.
		if exit, ok := err.(*exec.ExitError); err != nil && (!ok || exit.ExitCode() != 128) || !strings.Contains(out.String(), "err= 0") {
			t.Errorf("fio: %v\n%s", err, out.String())
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("fio does not end")
	}
	t.Logf("%d kills, %d recoveries, %d requests reissued, %d failed", kills, recovered, requeued.hits(), failed.hits())
	if recovered != kills || failed.hits() != 0 {
		t.Errorf("%d kills, %d recoveries, %d failed requests", kills, recovered, failed.hits())
	}
	s.ok("remove", "fio")
}
