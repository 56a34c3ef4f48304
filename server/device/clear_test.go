package device

import (
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/hack/faultfs"
	"holdfast/ploop"
	"holdfast/ublk"
)

// TestClearFailsOnlyWhatItHeld ends a standby without a resume, and has the next one begin before
// the queue has failed what was held: what it holds since is not to fail.
func TestClearFailsOnlyWhatItHeld(t *testing.T) {
	ctl := openControl(t)
	w := newTwoMounts(t, faultfs.Options{})
	if err := ploop.Create(filepath.Join(w.backing, "top"), ploop.CreateOptions{Size: 8 << 20, ClusterSize: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	f := serveStandby(t, ctl, api.Spec{Name: "anew", Images: refs(w.a, "top"), Queues: 1}).arm()
	fd := openDisk(t, f.Device)
	if err := fd.write(0, 1); err != nil {
		t.Fatal(err)
	}
	id := w.a.Add(faultfs.Rule{Path: "top", Hang: true})
	ended := make(chan error, 1)
	go func() { ended <- fd.zero(0, 1) }()
	eventually(t, "the request hangs", func() bool { return w.a.Rule(id).Hanging > 0 })
	busy, over := make(chan struct{}), make(chan struct{})
	if err := f.dev.Queues()[0].Post(func() { close(busy); <-over }); err != nil {
		t.Fatal(err)
	}
	<-busy
	for _, on := range []bool{true, false} {
		if err := f.SetStandby(on); err != nil {
			t.Fatal(err)
		}
	}
	w.a.Drop(id, unix.EIO)
	eventually(t, "standby once more", func() bool { return f.Status().Standby.Value == "on" })
	time.Sleep(50 * time.Millisecond) // for the request to come back to the queue
	close(over)
	if err := f.dev.OnQueues(func(*ublk.Queue) {}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the request is held", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("in standby the request ended with %v", err)
		default:
		}
		return f.Status().Standby.Held == 1
	})
	if err := f.Replace(t.Context(), Replace{Level: -1, Image: refs(w.a, "top")[0]}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := fd.expect(0, 0); err != nil {
		t.Error(err)
	}
}
