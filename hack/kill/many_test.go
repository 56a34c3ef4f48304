package kill

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

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
			if d.State == api.StateLive {
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
