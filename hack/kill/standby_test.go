package kill

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/control"
	"holdfast/device"
	"holdfast/hack/faultfs"
)

// TestStandby: the server is killed while it holds requests in standby. The next one is in
// standby too, and holds them again, whether the storage is back by then or not;
// and serves them when the top is replaced.
func TestStandby(t *testing.T) {
	kills := count(t, "HOLDFAST_VARIANT_KILLS", 3)
	for _, storageBack := range []bool{false, true} {
		t.Run(fmt.Sprintf("storage back %v", storageBack), func(t *testing.T) {
			s := makeServer(t, "--targets", "none")
			backing, first, second := t.TempDir(), t.TempDir(), t.TempDir()
			dead, err := faultfs.Mount(backing, first, faultfs.Options{Locks: true})
			must(t, err)
			t.Cleanup(func() { dead.Close() })
			other, err := faultfs.Mount(backing, second, faultfs.Options{Locks: true})
			must(t, err)
			t.Cleanup(func() { other.Close() })
			g := oneDelta(t, backing, 32<<20, 11)
			s.start()
			s.answers()
			disk := s.ok("create", "held", "--image", first+"/one.hds")
			s.ok("standby-check", "on")
			s.ok("attach", "held", "--consumer", "test")
			requeued, failed := countRequests(t, "block_rq_requeue", disk), countRequests(t, "block_rq_error", disk)
			w := startLoad(t, disk, g, 12, true)
			w.advances(100)
			dead.Dead(unix.ENOTCONN)
			before := s.holds("held")
			recovered := 0
			for range kills {
				if storageBack {
					dead.Dead(0)
				}
				s.kill()
				s.start()
				after := s.holds("held")
				recovered += s.recoveries("held")
				if !after.Enabled || !after.Flag || after.Errno != before.Errno || after.Cause != before.Cause ||
					!slices.Equal(after.Consumers, before.Consumers) || !after.Since.Equal(*before.Since) {
					t.Errorf("standby was %+v\nand is now %+v", before, after)
				}
				if snap, err := s.client.Snapshot(t.Context()); err != nil || !snap.Key.On || !slices.Equal(snap.Key.Holders, []string{"hand"}) {
					t.Errorf("the standby check: %+v, %v", snap.Key, err)
				}
				before = after
			}
			s.ok("replace", "held", second+"/one.hds")
			s.serves("held")
			w.advances(100)
			t.Logf("%d kills, %d recoveries, %d requests reissued, %d failed; %d held", kills, recovered, requeued.hits(), failed.hits(), before.Held)
			if failed.hits() != 0 {
				t.Errorf("%d requests failed", failed.hits())
			}
			s.remove("held", w)
		})
	}
}

// holds waits until a device is in standby, and holds requests.
func (s *server) holds(name string) device.StandbyStatus {
	s.t.Helper()
	var d *control.Device
	if err := wait(time.Minute, func() error {
		var err error
		if d, err = s.client.Device(s.t.Context(), name); err == nil && (d.State != device.StateStandby || d.Standby.Held == 0) {
			err = fmt.Errorf("%s is %s and holds %d requests: %s (%s)", name, d.State, d.Standby.Held, d.Problem, d.Advice)
		}
		return err
	}); err != nil {
		s.t.Fatalf("%v\n%s", err, s.logTail())
	}
	return d.Standby
}
