package kill

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/hack/faultfs"
)

// TestStandby: the server is killed while it holds requests in standby. The next one
// is in standby too, for the same reason and since the same time, and holds them again,
// until the top is replaced.
func TestStandby(t *testing.T) {
	h := hold(t)
	before := h.holds("held")
	h.dead.Dead(0) // so that the file can be opened; this ends no standby
	for range h.kills {
		h.kill()
		h.start()
		after := h.holds("held")
		if n := h.recoveries("held"); n != 1 {
			t.Errorf("%d recoveries", n)
		}
		if !after.Enabled || !after.Flag || after.Errno != before.Errno || after.Cause != before.Cause ||
			!slices.Equal(after.Consumers, before.Consumers) || !after.Since.Equal(*before.Since) {
			t.Errorf("standby was %+v\nand is now %+v", before, after)
		}
		h.checkIsOn()
	}
	h.finish()
}

// TestStandbyWithoutStorage: the storage is still dead when the server is started
// again. There is no file to serve anything from, so the driver keeps the requests, until
// another way to the file is given.
func TestStandbyWithoutStorage(t *testing.T) {
	needSoak(t)
	h := hold(t)
	for range h.kills {
		h.kill()
		h.start()
		h.waitsForStorage()
		h.checkIsOn()
	}
	h.finish()
}

// waitsForStorage waits until the device's new server says that it can't open the image. Then the mount is taken away,
// and with its connection all writes of the server before.
func (h *held) waitsForStorage() {
	h.t.Helper()
	seeFUSE(h.t)
	defer h.dead.Close()
	var d *api.Device
	must(h.t, wait(time.Minute, func() error {
		var err error
		if d, err = h.client.Device(h.t.Context(), "held"); err == nil && (d.State != api.StateRecovering || d.Problem == "") {
			err = fmt.Errorf("it is %s: %s", d.State, d.Problem)
		}
		return err
	}))
	if !slices.Equal(d.Standby.Consumers, []string{"test"}) {
		h.t.Errorf("the device is %s: %s; leases %q", d.State, d.Problem, d.Standby.Consumers)
	}
}

// held is a device in standby: its storage is dead, and it has a consumer.
type held struct {
	*server
	dead             *faultfs.Storage
	mount            func() *faultfs.Storage // one more way to the image
	w                *load
	requeued, failed *tracepoint

	kills int
}

func hold(t *testing.T) *held {
	t.Helper()
	return holdOn(makeServer(t, "--targets", "none"))
}

// holdOn starts a server, and makes the device on it.
func holdOn(s *server) *held {
	t := s.t
	t.Helper()
	h := &held{server: s, kills: count(t, "HOLDFAST_VARIANT_KILLS", 1)}
	backing := t.TempDir()
	h.mount = func() *faultfs.Storage {
		storage, err := faultfs.Mount(backing, t.TempDir(), faultfs.Options{Locks: true})
		must(t, err)
		t.Cleanup(func() { storage.Close() })
		return storage
	}
	h.dead = h.mount()
	g := oneDelta(t, backing, 8<<20, 11)
	s.start()
	s.answers()
	disk := s.ok("create", "held", "--image", h.dead.Dir+"/one.hds")
	s.ok("standby-check", "on")
	s.ok("attach", "held", "--consumer", "test")
	h.requeued, h.failed = countRequests(t, "block_rq_requeue", disk), countRequests(t, "block_rq_error", disk)
	h.w = startLoad(t, disk, g, 12, true)
	h.w.advances(40)
	h.dead.Dead(unix.ENOTCONN)
	h.holds("held")
	return h
}

// checkIsOn looks at the standby check, which is on by hand.
func (h *held) checkIsOn() {
	h.t.Helper()
	if snap, err := h.client.Snapshot(h.t.Context()); err != nil || !snap.Key.On || !slices.Equal(snap.Key.Holders, []string{"hand"}) {
		h.t.Errorf("the standby check: %+v, %v", snap, err)
	}
}

// finish gives the device another way to its file. What serves that is younger than what the dead server had open, so
// that the fence doesn't take it for who may have writes in hand: before 6.16 the kernel doesn't say whose they are.
func (h *held) finish() {
	h.t.Helper()
	h.ok("replace", "held", h.mount().Dir+"/one.hds")
	h.serves("held")
	h.w.advances(40)
	h.t.Logf("%d kills, %d requests reissued, %d failed", h.kills, h.requeued.hits(), h.failed.hits())
	if h.failed.hits() != 0 || h.requeued.hits() == 0 {
		h.t.Errorf("%d requests failed, %d were reissued", h.failed.hits(), h.requeued.hits())
	}
	h.remove("held", h.w)
}

// holds waits until a device is in standby, and holds requests.
func (s *server) holds(name string) api.StandbyStatus {
	s.t.Helper()
	var d *api.Device
	if err := wait(time.Minute, func() error {
		var err error
		if d, err = s.client.Device(s.t.Context(), name); err == nil && (d.State != api.StateStandby || d.Standby.Held == 0) {
			err = fmt.Errorf("%s is %s and holds %d requests: %s (%s)", name, d.State, d.Standby.Held, d.Problem, d.Advice)
		}
		return err
	}); err != nil {
		s.t.Fatalf("%v\n%s", err, s.logTail())
	}
	return d.Standby
}
