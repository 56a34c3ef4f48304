package kill

import (
	"os"
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
	must(t, syscall.Kill(s.waitServer("stopped"), syscall.SIGSTOP))
	time.Sleep(pause)
	must(t, syscall.Kill(s.waitServer("stopped"), syscall.SIGCONT))
	w.advances(200)
	if d, err := s.client.Device(t.Context(), "stopped"); err != nil || d.State != "live" || d.Problem != "" {
		t.Errorf("%+v, %v", d, err)
	}
	if requeued.hits() != 0 || failed.hits() != 0 {
		t.Errorf("%d requests were reissued, %d failed", requeued.hits(), failed.hits())
	}
	t.Logf("stopped for %v: the slowest request took %v, none failed; %v", pause, round(w.Longest()), w)

	// And killed while it is stopped, which nobody can keep from working.
	must(t, syscall.Kill(s.waitServer("stopped"), syscall.SIGSTOP))
	s.killServer("stopped")
	s.back("stopped")
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
	which := &s.program
	if s.managed() {
		which = &s.serveBinary
	}
	plain := *which
	*which = s.dir + "/limited"
	must(t, os.WriteFile(*which, []byte("#!/bin/sh\necho $$ >"+cgroup+"/cgroup.procs\nexec "+plain+" \"$@\"\n"), 0o700))
	s.start()
	s.answers()
	*which = plain
	w := s.serve("oom", g, 12)
	pid := s.waitServer("oom")
	failed := countRequests(t, "block_rq_error", w.disk)
	w.advances(100)
	go os.WriteFile(cgroup+"/memory.max", []byte("4M"), 0)
	s.ends(pid)
	s.killed = []int{pid}
	must(t, os.WriteFile(cgroup+"/memory.max", []byte("max"), 0))
	events, err := os.ReadFile(cgroup + "/memory.events")
	must(t, err)
	if strings.Contains(string(events), "oom_kill 0\n") { // it may have met the spawner as well
		t.Errorf("it was not the OOM killer: %s", events)
	}
	took := s.back("oom")
	if n := s.recoveries("oom"); n != 1 || failed.hits() != 0 {
		t.Errorf("%d recoveries, %d failed requests", n, failed.hits())
	}
	w.advances(50)
	t.Logf("killed for memory, serving again %v after the next start", round(took))
	s.remove("oom", w)
}
