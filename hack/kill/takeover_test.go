package kill

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"holdfast/ploop"
)

// TestTakeOverTime measures how long a request waits that comes when the next server is started, of the
// daemon that serves devices itself, HOLDFAST_OLD_BINARY, and of manager and server, in turns. It judges nothing.
func TestTakeOverTime(t *testing.T) {
	old := oldProgram(t)
	type host struct {
		*server
		device *BlockDevice
	}
	begin := func(name string, use string) host {
		s := makeServer(t, "--targets", "none")
		if use != "" {
			s.use(use)
		}
		image := filepath.Join(t.TempDir(), name)
		must(t, ploop.Create(image, ploop.CreateOptions{Size: 16 << 20, ClusterSize: 64 << 10}))
		s.start()
		s.answers()
		device, err := OpenBlockDevice(s.ok("create", name, "--image", image, "--queues", "1", "--depth", "32"))
		must(t, err)
		return host{s, device}
	}
	before, now := begin("before", old), begin("now", "")
	now.needServers()
	times := map[string][]time.Duration{}
	waited := func(what string, h host) {
		if _, err := h.device.ReadAt(aligned(4096), 0); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		times[what] = append(times[what], time.Since(h.started))
	}
	for range count(t, "HOLDFAST_TAKEOVERS", 9) {
		before.kill()
		before.start()
		waited("one daemon", before)
		before.serves("before")
		now.killServer("now")
		waited("server", now)
		now.serves("now")
		now.kill()
		now.start()
		waited("manager and server", now)
		now.serves("now")
	}
	median := func(what string) time.Duration {
		slices.Sort(times[what])
		return times[what][len(times[what])/2]
	}
	for what := range times {
		t.Logf("%s: %v, %.2f of one daemon's", what, round(median(what)), float64(median(what))/float64(median("one daemon")))
	}
	for name, h := range map[string]host{"before": before, "now": now} {
		h.device.Close()
		h.ok("remove", name)
	}
}
