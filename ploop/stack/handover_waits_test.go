package stack

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
)

// waitScene has 64 requests of which one hangs in the storage, or in a transfer past the
// engine, and the others wait for it in memory.
type waitScene struct {
	name string
	// hang is the operation that hangs.
	hang func(kind string, off int64) bool
	// prepare returns what ends a hang outside of the storage; nil: none.
	prepare func(t *testing.T, m *simMounts, s *Stack) (end func())
	request func(s *Stack, i int64) error
	// wrote says what request i leaves; nil: what was.
	wrote func(i int64) (cluster int64, b byte, ok bool)
}

const waitRequests = 64

func isIndex(off int64) bool { return off < 4096 }

// allocates is a write of a cluster of its own.
func allocates(s *Stack, i int64) error {
	_, err := s.WriteAt(clusterOf(byte(i+1)), (10+i)*4096)
	return err
}

func allocated(i int64) (int64, byte, bool) { return 10 + i, byte(i + 1), true }

var waitScenes = []waitScene{
	{name: "index", hang: func(kind string, off int64) bool { return kind == "write" && isIndex(off) }, request: allocates, wrote: allocated},
	{name: "growth", hang: func(kind string, _ int64) bool { return kind == "allocate" }, request: allocates, wrote: allocated, prepare: usedUp},
	{name: "guard", hang: func(kind string, _ int64) bool { return kind == "truncate" }, request: allocates, wrote: allocated, prepare: usedUp},
	{name: "sync", hang: func(kind string, _ int64) bool { return kind == "sync" },
		request: func(s *Stack, i int64) error {
			switch i % 3 {
			case 0:
				return s.Flush()
			case 1:
				return ringFlush(s)
			}
			return allocates(s, i)
		},
		wrote: func(i int64) (int64, byte, bool) { return 10 + i, byte(i + 1), i%3 == 2 }},
	{name: "data", hang: func(kind string, _ int64) bool { return kind == "zero" },
		request: func(s *Stack, i int64) error { // all of one cluster
			switch i % 3 {
			case 0:
				return s.WriteZeroes(5*4096, 512, true)
			case 1:
				_, err := s.WriteAt(clusterOf(6)[:512], 5*4096+1024)
				return err
			}
			return s.Discard(5*4096+512, 512)
		},
		wrote: func(i int64) (int64, byte, bool) { return 0, 1, i == 0 }},
	{name: "read back", hang: func(kind string, off int64) bool { return kind == "read" && isIndex(off) },
		prepare: func(t *testing.T, m *simMounts, s *Stack) func() {
			var once atomic.Bool
			m.w.Lock()
			m.w.fault = func(_ *simFile, kind string, off, n int64) simFault {
				if kind == "write" && isIndex(off) && !once.Swap(true) {
					return simFault{err: errGone, arrives: true}
				}
				return simFault{}
			}
			m.w.Unlock()
			return nil
		},
		request: allocates, wrote: allocated},
	{name: "transfer", hang: func(string, int64) bool { return false },
		prepare: func(t *testing.T, m *simMounts, s *Stack) func() {
			r := s.NewReader()
			at := r.Locate(0, 4096, false)
			if at.Where != Direct {
				t.Fatal(at)
			}
			return func() { r.Leave(at.Token) }
		},
		request: func(s *Stack, i int64) error {
			return s.Discard([]int64{0, 5, 300}[i%3]*4096, 4096)
		},
		wrote: func(i int64) (int64, byte, bool) { return []int64{0, 5, 300}[i%3], 0, true }},
}

// usedUp leaves no room in the file.
func usedUp(t *testing.T, m *simMounts, s *Stack) func() {
	for place, err := s.space.allocate(s); s.space.next < s.space.have; place, err = s.space.allocate(s) {
		if err != nil || !place.zero {
			t.Fatal(place, err)
		}
	}
	return nil
}

// TestWaitsEndWhenSuperseded: of 64 requests one hangs in the old storage. The others begin
// anew at once, on the new stack, or on the old one if that goes on, and there it may be
// so again and again; nothing of what they were in the middle of is lost or done twice.
func TestWaitsEndWhenSuperseded(t *testing.T) {
	for _, c := range waitScenes {
		for _, resumed := range []bool{false, true} {
			t.Run(c.name+map[bool]string{true: "/resumed", false: "/replaced"}[resumed], func(t *testing.T) { c.run(t, resumed) })
		}
	}
}

func (c waitScene) run(t *testing.T, resumed bool) {
	m, s := mountScene(t)
	var end func()
	if c.prepare != nil {
		end = c.prepare(t, m, s)
	}
	m.copyOf("copy", "top", false)
	h := m.hangOn("a", c.hang)
	var current atomic.Pointer[Stack]
	current.Store(s)
	var back, inside atomic.Int64
	var mu sync.Mutex
	anew := sync.NewCond(&mu)
	round := 0
	var wg sync.WaitGroup
	errs := make([]error, waitRequests)
	again := func(i int64) {
		wg.Go(func() {
			mu.Lock()
			r := round
			mu.Unlock()
			for {
				on := current.Load()
				inside.Add(1)
				errs[i] = c.request(on, i)
				inside.Add(-1)
				// What comes back late counts for nothing.
				if current.Load() == on && !errors.Is(errs[i], ErrSuperseded) && !errors.Is(errs[i], errGone) {
					return
				}
				back.Add(1)
				mu.Lock()
				for round == r {
					anew.Wait()
				}
				r = round
				mu.Unlock()
			}
		})
	}
	hung := int64(0)
	if end == nil {
		hung = 1
		again(0)
		<-h.begun
	}
	for i := hung; i < waitRequests; i++ {
		again(i)
	}
	rounds := 1
	if resumed {
		rounds = 3
	}
	for k := range rounds {
		eventually(t, "all are under way", func() bool { return inside.Load() == waitRequests })
		for range 100 {
			runtime.Gosched()
		}
		if n := back.Load(); n != 0 && c.name != "read back" {
			t.Fatalf("round %d: %d requests wait for nothing", k, n)
		}
		h := begin(t, s)
		eventually(t, "the return of all that don't hang", func() bool { return back.Load() == waitRequests-hung })
		if !resumed {
			f := one("b/copy")
			f.Drained, f.Force = false, true
			next, err := h.Prepare(f)
			if err != nil {
				t.Fatal(err)
			}
			commit(t, h)
			current.Store(next)
		} else if err := h.Abort(); err != nil {
			t.Fatal(err)
		}
		back.Store(0)
		mu.Lock()
		round++
		anew.Broadcast()
		mu.Unlock()
	}
	if !resumed {
		// They end while the old one still hangs.
		eventually(t, "the end of all that don't hang", func() bool {
			return inside.Load() == hung && back.Load() == 0
		})
	}
	if end != nil {
		end()
	}
	close(h.release)
	if !resumed {
		// Who hung begins anew as well.
		eventually(t, "the return of the one that hung", func() bool { return back.Load() == hung })
		mu.Lock()
		round++
		anew.Broadcast()
		mu.Unlock()
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	last := current.Load()
	for i := range int64(waitRequests) {
		if cluster, b, ok := c.wrote(i); ok {
			wantByte(t, last, cluster, b)
		}
	}
	if err := last.Flush(); err != nil {
		t.Error(err)
	}
	want := int64(0)
	for i := range last.clusters {
		if last.table.Load(i).Mapped() {
			want++
		}
		if last.table.Load(i).Busy() && slices.Contains([]string{"index", "growth", "guard", "data", "transfer"}, c.name) {
			t.Errorf("cluster %d is busy still", i)
		}
	}
	if n := last.Status().Allocated; n != want {
		t.Errorf("%d clusters are said to be allocated, %d are", n, want)
	}
	if err := last.Close(); err != nil {
		t.Fatal(err)
	}
	name := "top"
	if !resumed {
		name = "copy"
	}
	if r, err := ploop.CheckOn([]image.Ref{{Path: name}}, ploop.CheckOptions{}, m.w.open); err != nil || r.ExitCode() == ploop.ExitCorrupt {
		t.Errorf("%+v, %v", r, err)
	}
}
