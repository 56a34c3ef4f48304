package device

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/hack/faultfs"
	"holdfast/ublk"
)

// parkedDevice is a slowDevice whose storage is full.
type parkedDevice struct {
	*slowDevice
	storage *faultfs.Storage
	full    int // the rule
}

func newParkedDevice(t *testing.T, requests int) *parkedDevice {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts a file system")
	}
	w := newTwoMounts(t, faultfs.Options{})
	p := &parkedDevice{storage: w.a, slowDevice: newSlowDevice(t, requests+16, testImageOn(t, w, int64(requests)+16))}
	p.full = w.a.Add(faultfs.Rule{Op: faultfs.Fallocate, Path: "image", Errno: unix.ENOSPC})
	return p
}

// park has so many writes parked.
func (p *parkedDevice) park(n int) (rs []*fakeRequest) {
	p.t.Helper()
	for i := range n {
		rs = append(rs, p.request(&fakeRequest{op: ublk.OpWrite, off: int64(i) * testCluster, n: 4096, fill: 1}))
	}
	eventually(p.t, "all are parked", func() bool { return int(p.parked.Load()) == n && workers.Load() == 0 })
	return rs
}

func tries(rs []*fakeRequest) (n int) {
	for _, r := range rs {
		n += int(r.tries.Load())
	}
	return n
}

func (p *parkedDevice) fallocates() int { return int(p.storage.Counts()[faultfs.Fallocate]) }

func setPauses(t *testing.T, first, longest time.Duration) {
	wasFirst, wasLongest := firstPause, longestPause
	t.Cleanup(func() { firstPause, longestPause = wasFirst, wasLongest })
	firstPause, longestPause = first, longest
}

// all waits until every request was served.
func (p *parkedDevice) all(rs []*fakeRequest) {
	p.t.Helper()
	for _, r := range rs {
		select {
		case errno := <-r.end:
			if errno != 0 {
				p.t.Fatal(errno)
			}
		case <-time.After(time.Minute):
			p.t.Fatalf("a parked request doesn't go on; %d are parked", p.parked.Load())
		}
	}
	if n := p.parked.Load(); n != 0 {
		p.t.Errorf("%d are parked still", n)
	}
}

// TestParkedCost: many parked requests ask the storage no more often than one, and that ever
// more seldom; they have no worker. When there is space they go on by themselves.
func TestParkedCost(t *testing.T) {
	const n = 512
	// Far too often, so that a pause that doesn't grow would be seen.
	setPauses(t, 20*time.Millisecond, time.Hour)
	p := newParkedDevice(t, n)
	rs := p.park(n)
	if f := p.fallocates(); f > n+16 {
		t.Errorf("%d requests made %d fallocates before they were parked", n, f)
	}
	time.Sleep(time.Second)
	// 20, 40, 80, 160, 320 and 640 ms, and one of those that parked while others did.
	if again := tries(rs) - n; again > 8 {
		t.Errorf("%d tries in a second or so", again)
	} else if f := p.fallocates(); f > n+16+again+1 {
		t.Errorf("%d fallocates in %d tries", f-n, again)
	}
	p.storage.Clear()
	p.all(rs)
}

// TestParkedDiscard: a discard has the parked be tried at once, and a request that found
// space as well.
func TestParkedDiscard(t *testing.T) {
	for _, op := range []ublk.Op{ublk.OpDiscard, ublk.OpWriteZeroes, ublk.OpWrite} {
		t.Run(op.String(), func(t *testing.T) {
			setPauses(t, time.Hour, time.Hour)
			p := newParkedDevice(t, 64)
			rs := p.park(64)
			p.storage.Clear()
			last := p.request(&fakeRequest{op: op, off: 70 * testCluster, n: testCluster, fill: 1})
			p.all(append(rs, last))
		})
	}
}

// TestParkedProgress: what a little space is enough for goes on, one try at a time after a
// failure, and nothing is tried twice at the same time.
func TestParkedProgress(t *testing.T) {
	const n, some = 64, 10
	setPauses(t, time.Hour, time.Hour)
	p := newParkedDevice(t, n)
	rs := p.park(n)
	before := tries(rs)
	p.storage.Remove(p.full)
	p.storage.Add(faultfs.Rule{Op: faultfs.Fallocate, Path: "image", After: some, Errno: unix.ENOSPC})
	p.request(&fakeRequest{op: ublk.OpDiscard, off: 70 * testCluster, n: testCluster})
	eventually(t, "some are served", func() bool { return count(rs, (*fakeRequest).ended) >= some && workers.Load() == 0 })
	served := count(rs, (*fakeRequest).ended)
	// Those that were tried in vain are at most as many as were served last.
	if again := tries(rs) - before; again > 2*served+2 {
		t.Errorf("%d tries for %d that were served", again, served)
	}
	if left := int(p.parked.Load()); left != n-served {
		t.Errorf("%d are parked, want %d", left, n-served)
	}
}

// TestParkedHeld: when the gate closes, what is parked is held, and when the stack is replaced
// it begins anew.
func TestParkedHeld(t *testing.T) {
	setPauses(t, time.Hour, time.Hour)
	p := newParkedDevice(t, 32)
	p.key.Enable("test")
	if err := p.Attach("test"); err != nil {
		t.Fatal(err)
	}
	rs := p.park(16)
	if err := p.SetStandby(true); err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		<-r.anew
	}
	if n := p.parked.Load(); n != 0 {
		t.Errorf("%d are parked in standby", n)
	}
	p.SetStandby(false)
	rs = p.park(16)
	if err := p.epochs.declareLate(); err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		<-r.anew
	}
}

// TestParkedRemoved: the end of the device fails what is parked, and what comes to be.
func TestParkedRemoved(t *testing.T) {
	setPauses(t, time.Hour, time.Hour)
	p := newParkedDevice(t, 32)
	rs := p.park(16)
	p.parker.endParking()
	rs = append(rs, p.request(&fakeRequest{op: ublk.OpWrite, off: 20 * testCluster, n: 4096, fill: 1}))
	for _, r := range rs {
		if errno := <-r.end; errno != unix.EIO {
			t.Error(errno)
		}
	}
}
