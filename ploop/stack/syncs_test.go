package stack

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// TestFlushesShareSyncs: a flush that begins while a sync is under way waits for the next, and
// all who wait share it and its end.
func TestFlushesShareSyncs(t *testing.T) {
	_, s := faultScene(t)
	fail := errors.New("a sync")
	for range 3 {
		a := beginFlush(s)
		b, c := beginFlush(s), beginFlush(s)
		if a.state != FlushLead || !b.waits() || !c.waits() {
			t.Fatalf("three at once: %v, %v, %v", a.state, b.state, c.state)
		}
		if err := a.end(nil); err != nil || a.state != FlushDone {
			t.Fatal(a.state, err)
		}
		if err := b.wait(); err != nil || b.state != FlushLead {
			t.Fatalf("the second, after the first: %v, %v", b.state, err)
		}
		d := beginFlush(s)
		if !c.waits() || !d.waits() {
			t.Fatal("the third doesn't wait for the second")
		}
		b.end(nil)
		if err := c.wait(); err != nil || b.state != FlushDone || c.state != FlushDone {
			t.Fatalf("shared: %v, %v, %v", b.state, c.state, err)
		}
		// One that fails has lost what the waiting want as well.
		if err := d.wait(); err != nil || d.state != FlushLead {
			t.Fatal(d.state, err)
		}
		e, f := beginFlush(s), beginFlush(s)
		if err := d.end(fail); d.state != FlushFailed || !errors.Is(err, fail) {
			t.Fatal(d.state, err)
		}
		for _, w := range []*flushing{e, f} {
			if w.waits() {
				t.Fatal("the next sync is waited for, which says nothing of what this one lost")
			}
			if err := w.wait(); w.state != FlushFailed || !errors.Is(err, fail) {
				t.Fatal(w.state, err)
			}
		}
		// The lead can be passed on.
		i, k := beginFlush(s), beginFlush(s)
		s.FlushPass(&i.FlushWaiter)
		if err := k.wait(); err != nil || k.state != FlushLead {
			t.Fatal(k.state, err)
		}
		if err := k.end(nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFlushesWithoutEnd has always a flush begin before the last one's end. Each is believed
// nevertheless: the index becomes clean, and durable writes need no sync of the whole file.
func TestFlushesWithoutEnd(t *testing.T) {
	_, s := faultScene(t)
	writeByte(t, s, 5, 1)
	if !s.IndexDirty() {
		t.Fatal("clean after an allocation")
	}
	a := beginFlush(s)
	for range 3 {
		b := beginFlush(s)
		if err := a.end(nil); err != nil {
			t.Fatal(err)
		}
		if s.IndexDirty() || s.synced.Load() != s.indexSeq.Load() {
			t.Fatal("dirty after a flush that succeeded")
		}
		if b.wait(); b.state != FlushLead {
			t.Fatal(b.state)
		}
		a = b
	}
	a.end(nil)
}

// TestSyncsAreFew counts the syncs of many flushes and allocations at once, of both kinds: never
// two at a time, and far fewer than were asked for.
func TestSyncsAreFew(t *testing.T) {
	w, s := faultScene(t)
	var at, most atomic.Int64
	w.yield = true
	count := func(step int64) {
		n := at.Add(step)
		for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
		}
	}
	s.top.File = &countedSync{s.top.File, count}
	before := w.syncs
	var asked atomic.Int64
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 50 {
				asked.Add(1)
				var err error
				switch (g + i) % 3 {
				case 0:
					err = ringFlush(s)
				case 1:
					err = s.Flush()
				default:
					_, err = s.WriteAt(clusterOf(1), int64(g*50+i)%int64(s.clusters)*4096)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d syncs at a time", most.Load())
	}
	if n := int64(w.syncs - before); n > asked.Load()/2 {
		t.Errorf("%d syncs for %d requests", n, asked.Load())
	}
}

type countedSync struct {
	storage.File
	count func(int64)
}

func (f *countedSync) Sync() error {
	f.count(1)
	defer f.count(-1)
	return f.File.Sync()
}

// TestSyncThatHangs has a sync hang while the stack is superseded and resumed again and again:
// those who wait for it are sent away each time and wait again, and its end, when it
// comes, counts for them.
func TestSyncThatHangs(t *testing.T) {
	for _, fails := range []bool{false, true} {
		_, s := faultScene(t)
		writeByte(t, s, 5, 1)
		hung := beginFlush(s)
		for range 3 {
			a := beginFlush(s)
			flushed, wrote := make(chan error, 1), make(chan error, 1)
			go func() { flushed <- s.Flush() }()
			go func() {
				_, err := s.WriteAt(clusterOf(2), 6*4096)
				wrote <- err
			}()
			eventually(t, "two more who wait", func() bool {
				s.top.syncs.mu.Lock()
				defer s.top.syncs.mu.Unlock()
				n := 0
				for w := s.top.syncs.next.first; w != nil; w = w.next {
					n++
				}
				return n == 3
			})
			h := begin(t, s)
			if a.wait(); a.state != FlushAgain {
				t.Errorf("a waiting flush: %v", a.state)
			}
			if err := <-flushed; !errors.Is(err, ErrSuperseded) {
				t.Errorf("a waiting Flush: %v", err)
			}
			if err := <-wrote; !errors.Is(err, ErrSuperseded) {
				t.Errorf("an allocation: %v", err)
			}
			if b := beginFlush(s); b.state != FlushAgain {
				t.Errorf("a flush of a superseded stack: %v", b.state)
			}
			if err := h.Abort(); err != nil {
				t.Fatal(err)
			}
		}
		a := beginFlush(s)
		if !a.waits() {
			t.Fatal("two syncs at a time")
		}
		var err error
		if fails {
			err = syscall.EIO
		}
		hung.end(err)
		if a.wait(); fails != (a.state == FlushFailed) {
			t.Errorf("the hung one fails %v, the one that waited: %v", fails, a.state)
		} else if !fails {
			a.end(nil)
		}
		writeByte(t, s, 6, 2)
		if err := ringFlush(s); err != nil || s.IndexDirty() {
			t.Errorf("dirty after a flush, %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestLateSyncOfASharedTop has a sync of the old stack hang in a top that the new one shares,
// and fail when that has served writes: the new one's flush waits for it, and fails too.
func TestLateSyncOfASharedTop(t *testing.T) {
	m, s, _ := deepScene(t, false)
	hung := beginFlush(s)
	h := begin(t, s)
	refs := refsOf(s)
	m.copyOf("another base", refs[0].Path[2:], false)
	c := Succession{Refs: refs, Reopen: make([]bool, len(refs))}
	c.Reopen[0] = true
	next, err := h.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, h)
	a := beginFlush(next)
	if !a.waits() {
		t.Fatal("two syncs of a file at a time")
	}
	lost := next.index.syncFailed.Load()
	hung.end(syscall.EIO)
	if a.wait(); a.state != FlushFailed || next.index.syncFailed.Load() == lost {
		t.Errorf("the flush of the new stack: %v, and it knows of %d failed syncs", a.state, next.index.syncFailed.Load())
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

// TestFirstFlushIsLinear takes a full image over whose index is not known to be durable. Its
// first flush writes all of it, in large runs, and looks at what it wrote a few times at most.
func TestFirstFlushIsLinear(t *testing.T) {
	for _, tib := range []int64{1, 4} {
		ref := fullImage(t, tib<<40)
		var writes, written atomic.Int64
		open := func(path string, write, direct bool) (storage.File, error) {
			f, err := storage.Open(path, write, direct)
			return &countedWrites{f, &writes, &written}, err
		}
		s, err := Open([]image.Ref{ref}, Options{NoDirect: true, Distrust: true, open: open})
		if err != nil {
			t.Fatal(err)
		}
		sectors := int64(len(s.index.lost.sectors))
		if want := tib << 20 * 4 / image.SectorSize; sectors < want {
			t.Fatalf("%d sectors are lost, want %d", sectors, want)
		}
		for round := range 3 {
			writes.Store(0)
			written.Store(0)
			s.index.lost.visits = 0
			if round > 0 {
				s.index.distrust(s)
			}
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			if n := int64(s.index.lost.visits); n > 4*sectors {
				t.Errorf("%d TiB: %d sectors were looked at %d times", tib, sectors, n)
			}
			if n := writes.Load(); n > sectors*image.SectorSize/storage.CopyChunk+2 || written.Load() > (sectors+1)*image.SectorSize {
				t.Errorf("%d TiB: %d bytes written by %d writes", tib, written.Load(), n)
			}
			if s.index.lost.n.Load() != 0 || s.IndexDirty() {
				t.Error("still lost")
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

type countedWrites struct {
	storage.File
	n, bytes *atomic.Int64
}

func (f *countedWrites) WriteAt(p []byte, off int64) (int, error) {
	f.n.Add(1)
	f.bytes.Add(int64(len(p)))
	return f.File.WriteAt(p, off)
}

// TestSyncOverlap: while a sync is under way that began before, nothing comes
// into the index; what it says of lost data counts. When the stack is superseded
// nobody waits for it any more.
func TestSyncOverlap(t *testing.T) {
	for _, how := range []string{"fails", "succeeds", "superseded"} {
		m, s := mountScene(t)
		flush := beginFlush(s) // a sync of the caller's own
		late := make(chan error, 1)
		go func() {
			_, err := s.WriteAt(clusterOf(20), 200*4096)
			late <- err
		}()
		eventually(t, "wait for the other sync", func() bool {
			s.top.syncs.mu.Lock()
			defer s.top.syncs.mu.Unlock()
			return s.top.syncs.next.first != nil
		})
		if v := m.w.files["top"].now[format.HeaderSize+4*200]; v != 0 {
			t.Errorf("%s: it is in the index already", how)
		}
		switch how {
		case "superseded":
			h := begin(t, s)
			if err := <-late; !errors.Is(err, ErrSuperseded) {
				t.Errorf("superseded: %v", err)
			}
			if err := h.Abort(); err != nil {
				t.Error(err)
			}
			flush.end(nil)
			writeByte(t, s, 200, 20)
			if err := s.Flush(); err != nil || s.IndexDirty() {
				t.Errorf("dirty after a flush, %v", err)
			}
		case "fails":
			flush.end(syscall.EIO)
			if err := <-late; !errors.Is(err, syscall.EIO) {
				t.Errorf("fails: %v", err)
			}
			wantByte(t, s, 200, 0)
		case "succeeds":
			if flush.end(nil); flush.state != FlushDone {
				t.Error("not complete")
			}
			if err := <-late; err != nil {
				t.Error(err)
			}
			wantByte(t, s, 200, 20)
		}
		wantScene(t, s)
		closeClean(t, m, s)
	}
}
