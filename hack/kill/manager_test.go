package kill

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop"
)

// TestManagerKilled: the manager is killed HOLDFAST_MANAGER_KILLS times, at any time, while fio writes to
// HOLDFAST_MANAGER_DEVICES devices and reads back what it wrote, and another one is in standby. No server notices.
func TestManagerKilled(t *testing.T) {
	sharedOut(t, 0)
	s := makeServer(t, "--targets", "none")
	s.needServers()
	kills, devices := count(t, "HOLDFAST_MANAGER_KILLS", 5), count(t, "HOLDFAST_MANAGER_DEVICES", 3)
	const depth, rate = 4, 20 // so that a manager starts within a second on an emulated machine
	mayWait(t)
	h := holdOn(s)
	names, disks := s.createMany("fio", devices)
	var failed []*tracepoint
	for _, disk := range disks {
		failed = append(failed, countRequests(t, "block_rq_error", disk), countRequests(t, "block_rq_requeue", disk))
	}
	s.ok("attach", names[0], "--consumer", "hand")
	v := startFio(t, 8<<20, depth, rate, disks...)
	s.writes(60, names...)
	quiet := v.end()

	servers, standby, told := s.serverPIDs(), h.holds("held"), s.told()
	v = startFio(t, 8<<20, depth, rate, disks...)
	s.writes(20, names...)
	var longest time.Duration
	for range kills {
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		s.killDaemon()
		s.start()
		if rand.IntN(4) != 0 { // else it is killed while it starts
			s.answers()
			longest = max(longest, time.Since(s.started))
		}
	}
	s.answers()
	s.writes(20, names...)
	loud := v.end()
	t.Logf("the slowest request took %v, without kills %v; %d kills, the manager answers %v after its start at the latest",
		round(loud), round(quiet), kills, round(longest))

	for _, p := range failed {
		if n := p.hits(); n != 0 {
			t.Errorf("%s: %d requests", p.hist, n)
		}
	}
	for name, pid := range s.serverPIDs() {
		if servers[name] != pid {
			t.Errorf("%s was served by process %d, and is by %d", name, servers[name], pid)
		}
	}
	after := h.holds("held")
	if !after.Enabled || !after.Flag || after.Errno != standby.Errno || after.Held != standby.Held ||
		!slices.Equal(after.Consumers, standby.Consumers) || !after.Since.Equal(*standby.Since) {
		t.Errorf("standby was %+v\nand is now %+v", standby, after)
	}
	if d, err := s.client.Device(t.Context(), names[0]); err != nil || !slices.Equal(d.Standby.Consumers, []string{"hand"}) {
		t.Errorf("a lease by hand is gone: %+v, %v", d, err)
	}
	h.checkIsOn()
	// Each event of before is still told, in order, and none twice.
	for name, before := range told {
		now := s.told()[name]
		if len(now) < len(before) || !slices.Equal(now[:len(before)], before) {
			t.Errorf("the events of %s were\n%q\nand are\n%q", name, before, now)
		}
	}
	for _, name := range names {
		s.ok("remove", name)
	}
	// One that ends gives its lock back, which the dead storage can't.
	s.killServer("held")
	h.waitsForStorage()
	h.finish()
}

// mayWait has the kernel not report requests that wait for minutes, as those of a device in standby do.
func mayWait(t *testing.T) {
	t.Helper()
	const file = "/proc/sys/kernel/hung_task_timeout_secs"
	was, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, []byte("0\n"), 0o644))
	t.Cleanup(func() {
		if err := os.WriteFile(file, was, 0o644); err != nil {
			t.Error(err)
		}
	})
}

// told are all events, by device, as text.
func (s *server) told() map[string][]string {
	s.t.Helper()
	told := map[string][]string{}
	must(s.t, s.client.Events(s.t.Context(), api.EventsQuery{}, func(e api.Event) error {
		if e.Device != "" && e.Kind != api.EventJournal {
			told[e.Device] = append(told[e.Device], fmt.Sprintf("%d %s %s", e.Seq, e.Kind, e.Message))
		}
		return nil
	}))
	return told
}

// createMany makes n small devices.
func (s *server) createMany(prefix string, n int) (names, disks []string) {
	s.t.Helper()
	dir := s.t.TempDir()
	for k := range n {
		name := fmt.Sprintf("%s-%d", prefix, k)
		image := filepath.Join(dir, name)
		must(s.t, ploop.Create(image, ploop.CreateOptions{Size: 16 << 20, ClusterSize: 64 << 10}))
		names = append(names, name)
		disks = append(disks, s.ok("create", name, "--image", image, "--queues", "1", "--depth", "32"))
	}
	return names, disks
}
