package stack

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
	"holdfast/ploop/image"
)

// TestGraceWaits: a discard outlasts a transfer that was placed before it.
func TestGraceWaits(t *testing.T) {
	w := newSimWorld()
	s, err := Open([]image.Ref{w.addImage("a", 2, 8, 800)}, Options{open: w.open})
	if err != nil {
		t.Fatal(err)
	}
	writeByte(t, s, 3, 1)
	r := s.NewReader()
	at := r.Locate(3*4096, 512, false)
	if at.Where != Direct {
		t.Fatalf("%+v", at)
	}
	var done atomic.Bool
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		if err := s.Discard(3*4096, 4096); err != nil {
			t.Error(err)
		}
		done.Store(true)
	}()
	for r2 := s.slow; ; runtime.Gosched() { // until it is announced
		at := r2.Locate(3*4096, 512, true)
		if at.Where != Direct {
			break
		}
		r2.Leave(at.Token)
	}
	time.Sleep(5 * time.Millisecond)
	if done.Load() {
		t.Error("the discard didn't wait")
	}
	r.Leave(at.Token)
	<-finished
	if at := r.Locate(3*4096, 512, false); at.Where != Zero {
		t.Errorf("afterwards it is at %+v", at)
	}
}

// graceRace has threads transfer to the places they were told while clusters
// are discarded and their places given to others. It returns the first byte
// that landed in, or came from, a cluster of another.
func graceRace(t *testing.T, skip bool, rounds int) error {
	const clusters, c = 12, 4096
	dir := memDir(t)
	ref := mustCreate(t, filepath.Join(dir, "a"), ploop.CreateOptions{Size: clusters * c, ClusterSize: c})
	s := mustOpen(t, []image.Ref{ref}, Options{NoDirect: true})
	s.grace.skip = skip
	var failed atomic.Pointer[error]
	fail := func(err error) { failed.CompareAndSwap(nil, &err) }
	var stop atomic.Bool
	var wg sync.WaitGroup
	fd := s.Fds()[0]
	for n := range 3 {
		r := s.NewReader()
		rng := rand.New(rand.NewPCG(1, uint64(n)))
		wg.Go(func() {
			p := make([]byte, image.SectorSize)
			for !stop.Load() {
				i := rng.IntN(clusters)
				off := int64(i)*c + int64(rng.IntN(c/image.SectorSize))*image.SectorSize
				write := rng.IntN(2) == 0
				at := r.Locate(off, image.SectorSize, write)
				if at.Where != Direct {
					runtime.Gosched()
					continue
				}
				if rng.IntN(2) == 0 {
					runtime.Gosched()
				}
				var err error
				if write {
					for k := range p {
						p[k] = byte(i + 1)
					}
					_, err = unix.Pwrite(fd, p, at.Offset)
				} else if _, err = unix.Pread(fd, p, at.Offset); err == nil && p[0] != 0 && p[0] != byte(i+1) {
					fail(fmt.Errorf("cluster %d reads as %d's", i, p[0]-1))
				}
				r.Leave(at.Token)
				if err != nil {
					fail(err)
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(2, 2))
	p := make([]byte, c)
	for range rounds {
		if failed.Load() != nil {
			break
		}
		i := rng.IntN(clusters)
		if rng.IntN(2) == 0 {
			if err := s.Discard(int64(i)*c, c); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for k := range p {
			p[k] = byte(i + 1)
		}
		if _, err := s.WriteAt(p, int64(i)*c); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for i, b := range readDisk(t, ref) {
		if b != 0 && int(b) != i/c+1 {
			fail(fmt.Errorf("cluster %d holds a byte of %d's", i/c, b-1))
			break
		}
	}
	if e := failed.Load(); e != nil {
		return *e
	}
	return nil
}

func TestGraceRace(t *testing.T) {
	if err := graceRace(t, false, 5000); err != nil {
		t.Error(err)
	}
}

// TestGraceRaceControl must see the race when nobody waits.
func TestGraceRaceControl(t *testing.T) {
	err := graceRace(t, true, 200000)
	if err == nil {
		t.Fatal("without the grace period nothing went wrong")
	}
	t.Log(err)
}
