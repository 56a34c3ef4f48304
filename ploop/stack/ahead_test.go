package stack

import (
	"testing"

	"holdfast/ploop/image"
)

// roomScene is an image of 1,000 clusters on storage whose room lasts or not, which grows by 64 at a time.
func roomScene(t *testing.T, o Options, reserves bool) (*simWorld, *Stack) {
	t.Helper()
	w := newSimWorld()
	w.reserves = reserves
	ref := w.addImage("top", 2, 8, 8000)
	o.open, o.step, o.Log = w.open, 64, t.Logf
	s, err := Open([]image.Ref{ref}, o)
	if err != nil {
		t.Fatal(err)
	}
	return w, s
}

func (w *simWorld) synced() int {
	w.Lock()
	defer w.Unlock()
	return w.syncs
}

// TestAllocateWithoutSync: new clusters wait for a sync only where nothing else says that they read as
// zeroes until their data is durable. One that has data in a lower image always does.
func TestAllocateWithoutSync(t *testing.T) {
	const n = 320
	for _, c := range []struct {
		what            string
		reserves, ahead bool
		most, least     int
	}{
		{"room that is made durable ahead", true, true, n/64 + 3, 1},
		{"room that the first in it makes durable", true, false, n / 64, n / 64},
		{"holes", false, true, n, n},
	} {
		t.Run(c.what, func(t *testing.T) {
			w, s := roomScene(t, Options{noAhead: !c.ahead}, c.reserves)
			before := w.synced()
			for i := range int64(n) {
				writeByte(t, s, i*3, byte(i%255+1))
			}
			s.space.ahead.wait(s, 0)
			if got := w.synced() - before; got > c.most || got < c.least {
				t.Errorf("%d syncs for %d clusters, want %d to %d", got, n, c.least, c.most)
			}
			for i := range int64(n) {
				wantByte(t, s, i*3, byte(i%255+1))
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRoomOfFailedSync: room that a failed sync was to make durable isn't relied on, whatever a later one
// says; room that is durable since before the failure goes the same way, and what grows later does not.
func TestRoomOfFailedSync(t *testing.T) {
	w, s := roomScene(t, Options{noAhead: true}, true)
	fails := true
	w.fault = func(_ *simFile, kind string, _, _ int64) simFault {
		if kind == "sync" && fails {
			fails = false
			return simFault{err: errGone}
		}
		return simFault{}
	}
	if _, err := s.WriteAt(clusterOf(1), 0); err == nil {
		t.Fatal("a write whose sync failed has succeeded")
	}
	syncs := func(i int64) int {
		before := w.synced()
		writeByte(t, s, i, 7)
		return w.synced() - before
	}
	i := int64(1)
	for ; s.space.left() > 0; i++ {
		if n := syncs(i); n != 1 {
			t.Fatalf("cluster %d of room in doubt: %d syncs", i, n)
		}
	}
	writeByte(t, s, i, 7) // grows; the place that the failed one gave back was the first to go
	if n := syncs(i + 1); n != 0 {
		t.Errorf("new room: %d syncs", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestDataFailsBesideIndex: the data of a new cluster can't be written, and its entry can. The write
// fails, the cluster shows zeroes, and the next write finds it in its place.
func TestDataFailsBesideIndex(t *testing.T) {
	w, s := roomScene(t, Options{noAhead: true}, true)
	writeByte(t, s, 0, 1) // makes the room durable
	end := int64(s.top.Header.DataStart()) * image.SectorSize
	w.Lock()
	w.fault = func(_ *simFile, kind string, off, _ int64) simFault {
		if kind == "write" && off >= end {
			return simFault{err: errGone}
		}
		return simFault{}
	}
	w.Unlock()
	if _, err := s.WriteAt(clusterOf(2), 5*4096); err == nil {
		t.Fatal("a write whose data failed has succeeded")
	}
	w.Lock()
	w.fault = nil
	w.Unlock()
	wantByte(t, s, 5, 0)
	left := s.space.left()
	writeByte(t, s, 5, 3)
	wantByte(t, s, 5, 3)
	if s.space.left() != left || s.space.free.N != 0 {
		t.Errorf("%d places left and %d free, were %d and 0", s.space.left(), s.space.free.N, left)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
