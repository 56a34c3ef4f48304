package kill

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop"
)

// TestMany: how long it takes until all devices of a killed server are served again,
// one and HOLDFAST_DEVICES of them.
func TestMany(t *testing.T) {
	needSoak(t)
	many := count(t, "HOLDFAST_DEVICES", 16)
	dir := t.TempDir()
	again := map[int]time.Duration{}
	s := newServer(t, "--targets", "none")
	made := 0
	for _, n := range []int{1, many} {
		for ; made < n; made++ {
			path := filepath.Join(dir, fmt.Sprintf("%d.hds", made))
			must(t, ploop.Create(path, ploop.CreateOptions{Size: 16 << 20, ClusterSize: 64 << 10}))
			s.ok("create", fmt.Sprintf("many-%d", made), "--image", path, "--queues", "1", "--depth", "32")
		}
		var times []time.Duration
		for range 3 {
			s.kill()
			s.start()
			times = append(times, s.serveAll(n))
		}
		slices.Sort(times)
		again[n] = times[1]
		t.Logf("%d devices: all served %v after the start (%v)", n, round(times[1]), times)
	}
	t.Logf("%d devices take %.1f times as long as one", many, float64(again[many])/float64(again[1]))
	for k := range made {
		s.ok("remove", fmt.Sprintf("many-%d", k))
	}
}

// serveAll waits until n devices are live.
func (s *server) serveAll(n int) time.Duration {
	s.t.Helper()
	if err := wait(5*time.Minute, func() error {
		snap, err := s.client.Snapshot(s.t.Context())
		if err != nil {
			return err
		}
		live := 0
		for _, d := range snap.Devices {
			if d.State == api.StateLive && (d.Server == nil || d.Server.State == api.ServerUp && d.Server.PID == s.serverPID(d.Name)) {
				live++
			}
		}
		if live != n {
			return fmt.Errorf("%d of %d devices are live", live, n)
		}
		return nil
	}); err != nil {
		s.t.Fatalf("%v\n%s", err, s.logTail())
	}
	return time.Since(s.started)
}

// TestAllServersKilledAtOnce: the servers of HOLDFAST_DEVICES devices die at the same time, some of them under
// load. The manager has all served again, each once, and nobody sees an error.
func TestAllServersKilledAtOnce(t *testing.T) {
	sharedOut(t, 0)
	many, rounds := count(t, "HOLDFAST_DEVICES", 6), 1
	if many > 6 {
		rounds = 3
	}
	s := newServer(t, "--targets", "none")
	s.needServers()
	all := s.serveMany("busy", 4, 2)
	idle, _ := s.createMany("idle", many-len(all))
	var failed []*tracepoint
	for _, w := range all {
		failed = append(failed, countRequests(t, "block_rq_error", w.disk))
	}
	manager := s.process.Pid
	var times []time.Duration
	for range rounds {
		all.advance(10)
		pids := s.serverPIDs()
		for _, pid := range pids {
			must(t, unix.Kill(pid, unix.SIGKILL))
		}
		s.started = time.Now()
		for name, pid := range pids {
			s.waitServer(name, pid)
		}
		times = append(times, s.serveAll(many))
		for name := range pids {
			if n := s.recoveries(name); n != 1 {
				t.Errorf("%s was recovered %d times", name, n)
			}
		}
		all.advance(10)
		all.sound()
	}
	t.Logf("%d devices: all served again %v after the death of their servers", many, times)
	if s.dead() || s.process.Pid != manager {
		t.Error("the manager has died of it")
	}
	for _, p := range failed {
		if n := p.hits(); n != 0 {
			t.Errorf("%d requests failed", n)
		}
	}
	all.remove(s)
	for _, name := range idle {
		s.ok("remove", name)
	}
}
