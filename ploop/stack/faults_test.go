package stack

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// faulty plays one seed on storage that fails now and then, in every way it
// can: operations fail, having arrived or not; the reading back fails as well;
// syncs fail, with lossy losing what they were to make durable; believing is
// the control of that. It wants every
// acknowledged write to be there, in life, over a close, and over power cuts.
func faulty(seed uint64, lossy, believing bool) error {
	rng := rand.New(rand.NewPCG(seed, 7))
	w := newSimWorld()
	sc, now := newCutScene(w, rng)
	m := newCutModel(w, now)
	w.yield = sc.workers > 1
	var cuts []cutImage
	s, err := Open(sc.refs, Options{open: w.open})
	if err != nil {
		return err
	}
	s.believing = believing
	faults := rand.New(rand.NewPCG(seed, 8))
	w.Lock()
	m.running = true
	w.event = func() {
		if faults.IntN(60) == 0 && len(cuts) < 20 {
			cuts = append(cuts, m.cut(faults))
		}
	}
	odds := 5 + rng.IntN(40)
	errnos := []error{syscall.EIO, syscall.ENOSPC, syscall.EBUSY, syscall.ENOTCONN}
	w.fault = func(f *simFile, kind string, off, n int64) simFault {
		if faults.IntN(odds) != 0 {
			return simFault{}
		}
		if kind == "sync" && lossy {
			f.loseCache(faults)
			m.lost = nil
			for _, h := range m.history {
				m.lost = append(m.lost, len(h))
			}
		}
		return simFault{err: errnos[faults.IntN(len(errnos))], arrives: faults.IntN(2) == 0}
	}
	w.Unlock()
	errs := make([]error, sc.workers)
	var wg sync.WaitGroup
	for i := range errs {
		k := &worker{m: m, s: s, r: s.NewReader(), rng: rand.New(rand.NewPCG(rng.Uint64(), 2))}
		wg.Go(func() {
			for range sc.steps {
				var errno syscall.Errno
				if err := k.step(); errors.Is(err, errWrong) || err != nil && !errors.As(err, &errno) {
					errs[i] = err
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}

	// The storage is well again.
	w.Lock()
	w.fault = nil
	w.Unlock()
	p := make([]byte, s.Size())
	if _, err := s.ReadAt(p, 0); err != nil {
		return fmt.Errorf("after the faults: %w", err)
	}
	if err := m.compare(p, 0); err != nil {
		return fmt.Errorf("after the faults: %w", err)
	}
	if err := m.flush(s.Flush); err != nil {
		return err
	}
	w.Lock()
	cuts = append(cuts, m.cut(faults))
	m.running = false
	w.event = nil
	w.Unlock()
	if err := s.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	for i, c := range cuts {
		if _, _, err := c.verify(sc.refs); err != nil {
			return fmt.Errorf("cut %d of %d: %w", i, len(cuts), err)
		}
	}
	r, err := ploop.CheckOn(sc.refs, ploop.CheckOptions{}, w.open)
	if err != nil || r.ExitCode() == ploop.ExitCorrupt {
		return fmt.Errorf("check: %+v, %w", r, err)
	}
	s, err = Open(sc.refs, Options{ReadOnly: true, open: w.open})
	if err != nil {
		return err
	}
	again := make([]byte, len(p))
	if _, err := s.ReadAt(again, 0); err != nil || !bytes.Equal(p, again) {
		return fmt.Errorf("memory and file disagreed (%w)", err)
	}
	return nil
}

func faultySeeds(t *testing.T, lossy bool) {
	t.Parallel()
	seeds := cutSeeds(600)
	for seed := range seeds {
		if err := faulty(uint64(seed), lossy, false); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func TestFaults(t *testing.T) { faultySeeds(t, false) }

// TestLossyFaults: a failed sync may have lost for good what it was told to
// make durable. What was written and flushed after it must not depend on that.
func TestLossyFaults(t *testing.T) { faultySeeds(t, true) }

// TestLossyFaultsControl holds a failed sync against nobody but those who shared it.
func TestLossyFaultsControl(t *testing.T) {
	control(t)
	for seed := range uint64(20000) {
		if err := faulty(seed, true, true); err != nil {
			t.Logf("seed %d: %v", seed, err)
			return
		}
	}
	t.Error("not one of 20000 seeds goes wrong")
}

// faultScene is a small image with cluster 0 stored.
func faultScene(t *testing.T) (*simWorld, *Stack) {
	t.Helper()
	w := newSimWorld()
	s, err := Open([]image.Ref{w.addImage("a", 2, 8, 8*300)}, Options{open: w.open, Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	writeByte(t, s, 0, 1)
	return w, s
}

func clusterOf(b byte) []byte { return bytes.Repeat([]byte{b}, 4096) }

func writeByte(t *testing.T, s *Stack, cluster int64, b byte) {
	t.Helper()
	if _, err := s.WriteAt(clusterOf(b), cluster*4096); err != nil {
		t.Fatal(err)
	}
}

func wantByte(t *testing.T, s *Stack, cluster int64, b byte) {
	t.Helper()
	p := make([]byte, 4096)
	if _, err := s.ReadAt(p, cluster*4096); err != nil || !bytes.Equal(p, clusterOf(b)) {
		t.Errorf("cluster %d reads as %d, %v, want %d", cluster, p[0], err, b)
	}
}

// onIndex makes a hook that fails writes and, if wanted, reads of the BAT.
func onIndex(arrives bool, read *atomic.Bool) func(*simFile, string, int64, int64) simFault {
	return func(_ *simFile, kind string, off, n int64) simFault {
		if off >= 4096 || kind != "write" && kind != "read" || kind == "read" && !read.Load() {
			return simFault{}
		}
		return simFault{err: syscall.EIO, arrives: arrives}
	}
}

// TestIndexWriteFails: after a failed write of the index memory says what the
// file says, whichever of the two versions that is.
func TestIndexWriteFails(t *testing.T) {
	for _, arrives := range []bool{false, true} {
		for _, unreadable := range []bool{false, true} {
			t.Run(fmt.Sprintf("arrives %v, unreadable %v", arrives, unreadable), func(t *testing.T) {
				w, s := faultScene(t)
				var read atomic.Bool
				read.Store(unreadable)
				w.fault = onIndex(arrives, &read)
				if _, err := s.WriteAt(clusterOf(2), 5*4096); !errors.Is(err, syscall.EIO) {
					t.Fatalf("write says %v", err)
				}
				if unreadable {
					// Nobody knows, so nobody is told anything.
					if _, err := s.ReadAt(make([]byte, 512), 5*4096); !errors.Is(err, syscall.EIO) {
						t.Errorf("read says %v", err)
					}
					if _, err := s.WriteAt(clusterOf(3), 5*4096); !errors.Is(err, syscall.EIO) {
						t.Errorf("write says %v", err)
					}
					writeByte(t, s, 0, 4) // the rest goes on
					wantByte(t, s, 0, 4)
					read.Store(false)
				}
				if arrives {
					wantByte(t, s, 5, 2)
				} else {
					wantByte(t, s, 5, 0)
				}
				w.fault = nil
				writeByte(t, s, 5, 6)
				wantByte(t, s, 5, 6)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				r, err := ploop.CheckOn([]image.Ref{{Path: "a"}}, ploop.CheckOptions{}, w.open)
				if err != nil || r.ExitCode() == ploop.ExitCorrupt {
					t.Errorf("%+v, %v", r, err)
				}
			})
		}
	}
}

// TestIndexForeign: what reads back as neither version was written by someone
// else, and nothing is made of it.
func TestIndexForeign(t *testing.T) {
	w, s := faultScene(t)
	w.fault = func(f *simFile, kind string, off, n int64) simFault {
		if kind == "write" && off == 0 {
			f.now[format.HeaderSize+4*5] = 77
			return simFault{err: syscall.EIO}
		}
		return simFault{}
	}
	if _, err := s.WriteAt(clusterOf(2), 5*4096); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	_, err := s.ReadAt(make([]byte, 512), 5*4096)
	WantLine(t, err, image.ErrCorrupt, "offset 0", "something else writes")
	if err := s.Close(); err == nil {
		t.Error("closes as clean")
	}
}

// TestFullStorage: ENOSPC is told as it is, harms nothing, and a retry works
// when there is room again.
func TestFullStorage(t *testing.T) {
	w, s := faultScene(t)
	s.space.have = s.space.next // as if the step had just been used up
	room := int64(0)
	w.fault = func(_ *simFile, kind string, off, n int64) simFault {
		if kind == "allocate" {
			if n > room {
				return simFault{err: syscall.ENOSPC}
			}
			room -= n
		}
		return simFault{}
	}
	for range 3 {
		if _, err := s.WriteAt(clusterOf(2), 5*4096); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("write says %v", err)
		}
	}
	wantByte(t, s, 5, 0)
	writeByte(t, s, 0, 3) // in place
	wantByte(t, s, 0, 3)
	room = 4096 // less than a step
	writeByte(t, s, 5, 4)
	wantByte(t, s, 5, 4)
	if _, err := s.WriteAt(clusterOf(2), 6*4096); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("write says %v", err)
	}
	if err := s.Discard(0, 4096); err != nil { // makes room as well
		t.Fatal(err)
	}
	writeByte(t, s, 6, 5)
	wantByte(t, s, 6, 5)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err := ploop.CheckOn([]image.Ref{{Path: "a"}}, ploop.CheckOptions{}, w.open); err != nil || r.ExitCode() != ploop.ExitClean {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestSyncFails: a write whose data a failed sync may have lost isn't put
// into the index.
func TestSyncFails(t *testing.T) {
	w, s := faultScene(t)
	fail := true
	w.fault = func(_ *simFile, kind string, off, n int64) simFault {
		if kind == "sync" && fail {
			return simFault{err: syscall.EIO}
		}
		return simFault{}
	}
	if _, err := s.WriteAt(clusterOf(2), 5*4096); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := s.Flush(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	fail = false
	wantByte(t, s, 5, 0)
	writeByte(t, s, 5, 3)
	wantByte(t, s, 5, 3)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestGroupCommit: allocations that come while one is being made durable
// share the next sync.
func TestGroupCommit(t *testing.T) {
	const n = 32
	w, s := faultScene(t)
	var arrived atomic.Int32
	all := make(chan struct{})
	w.fault = func(_ *simFile, kind string, off, _ int64) simFault {
		if kind == "write" && off >= 4096 && arrived.Add(1) == n {
			close(all)
		}
		return simFault{}
	}
	w.beforeSync = func() { <-all }
	before := w.syncs
	var wg sync.WaitGroup
	for i := range int64(n) {
		wg.Go(func() { writeByte(t, s, 10+i, byte(i+1)) })
	}
	wg.Wait()
	if syncs := w.syncs - before; syncs > n/4 {
		t.Errorf("%d allocations cost %d syncs", n, syncs)
	}
	w.beforeSync = nil
	for i := range int64(n) {
		wantByte(t, s, 10+i, byte(i+1))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
