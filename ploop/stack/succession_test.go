package stack

import (
	"bytes"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

const sceneClusters = 400 // four sectors of index; of 4096 bytes

// mountScene is an image on mount a, whose clusters 0, 5 and 300 are stored
// durably.
func mountScene(t *testing.T) (*simMounts, *Stack) {
	t.Helper()
	w := newSimWorld()
	w.addImage("top", 2, 8, 8*sceneClusters)
	m := newSimMounts(t, w)
	s, err := Open([]image.Ref{{Path: "a/top"}}, Options{open: m.open, Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int64{0, 5, 300} {
		writeByte(t, s, i, byte(i+1))
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	return m, s
}

// copyOf makes a file of what another holds, or would after a power cut that
// leaves nothing but what is durable.
func (m *simMounts) copyOf(name, from string, durable bool) {
	m.w.Lock()
	defer m.w.Unlock()
	b := m.w.files[from].now
	if durable {
		b = m.w.files[from].durable
	}
	m.w.add(name, b)
}

func one(path string) Succession {
	return Succession{Refs: []image.Ref{{Path: path}}, Reopen: []bool{true}, Drained: true}
}

// begin begins a handover that the test has to end.
func begin(t testing.TB, s *Stack) *Handover {
	t.Helper()
	h, err := s.BeginHandover()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.state == handoverBegun || h.state == handoverPrepared {
			t.Errorf("a handover is neither committed nor aborted: it is %v", h.state)
		}
	})
	return h
}

// mustSucceed prepares a handover that the test ends.
func mustSucceed(t testing.TB, s *Stack, c Succession) (*Handover, *Stack) {
	t.Helper()
	h := begin(t, s)
	next, err := h.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	return h, next
}

func commit(t testing.TB, h *Handover) {
	t.Helper()
	if err := h.Commit(); err != nil {
		t.Fatal(err)
	}
}

func wantScene(t *testing.T, s *Stack) {
	t.Helper()
	for _, i := range []int64{0, 5, 300} {
		wantByte(t, s, i, byte(i+1))
	}
	wantByte(t, s, 7, 0)
}

// closeClean closes and wants check to find nothing.
func closeClean(t *testing.T, m *simMounts, s *Stack) {
	t.Helper()
	var refs []image.Ref
	for _, d := range s.deltas {
		refs = append(refs, d.Ref)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := ploop.CheckOn(refs, ploop.CheckOptions{}, m.open)
	if err != nil {
		t.Fatal(err)
	}
	if r.ExitCode() != ploop.ExitClean {
		for _, i := range r.Images {
			t.Errorf("%+v", *i)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: not within ten seconds", what)
}

// TestSucceedSameFile: the storage is back, by the same mount or by another,
// and the stack goes on; the old file is closed and never written.
func TestSucceedSameFile(t *testing.T) {
	for _, path := range []string{"a/top", "b/top"} {
		m, s := mountScene(t)
		old := s.top.File.(*simHandle)
		m.changed("a")
		h, next := mustSucceed(t, s, one(path))
		commit(t, h)
		wantScene(t, next)
		writeByte(t, next, 7, 70)
		if err := next.Discard(5*4096, 4096); err != nil {
			t.Fatal(err)
		}
		writeByte(t, next, 8, 80)
		wantByte(t, next, 5, 0)
		wantByte(t, next, 7, 70)
		eventually(t, "close of the old file", old.closed.Load)
		if c := m.changed("a"); path == "b/top" && len(c) > 0 {
			t.Errorf("the old mount saw %q", c)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close of the old one: %v", err)
		}
		if _, err := s.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrClosed) {
			t.Errorf("the old one reads: %v", err)
		}
		closeClean(t, m, next)
	}
}

// TestSucceedLocks: a lock that the dead mount keeps is in the way, and while
// requests are under way the device's own lock is as well.
func TestSucceedLocks(t *testing.T) {
	m, s := mountScene(t)
	h := begin(t, s)
	c := one("b/top")
	c.Drained = false
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrLocked) || !strings.Contains(err.Error(), "under way") {
		t.Errorf("not drained: %v", err)
	}
	if !s.top.File.Locked() {
		t.Error("the lock was given away")
	}
	r := s.NewReader() // and the stack knows by itself that it isn't drained
	at := r.Locate(0, 512, true)
	if _, err := h.Prepare(one("b/top")); !errors.Is(err, image.ErrLocked) {
		t.Errorf("a transfer is under way: %v", err)
	}
	r.Leave(at.Token)

	m.die("a", errGone)
	_, err := h.Prepare(one("b/top"))
	if !errors.Is(err, image.ErrLocked) || !errors.Is(err, ErrLockLost) {
		t.Errorf("dead mount: %v", err)
	}
	var errno syscall.Errno
	if err := h.Abort(); !errors.Is(err, ErrLockLost) || !errors.As(err, &errno) {
		t.Errorf("abort: %v", err)
	}
	if err := s.wouldWrite(); !errors.Is(err, ErrSuperseded) {
		t.Errorf("without its lock it would write: %v", err)
	}
	m.die("a", nil)
	if err := h.Abort(); !errors.Is(err, ErrLockLost) {
		t.Errorf("the second abort: %v", err)
	}
	if err := s.wouldWrite(); !errors.Is(err, ErrSuperseded) {
		t.Errorf("without its lock it would write after the second abort: %v", err)
	}
	if err := begin(t, s).Abort(); err != nil {
		t.Error(err)
	}
	writeByte(t, s, 7, 7)
	if err := s.Discard(7*4096, 4096); err != nil {
		t.Fatal(err)
	}

	// The server has dropped the dead client's locks.
	m.die("a", errGone)
	m.unlock(s.top.File.(*simHandle))
	h, next := mustSucceed(t, s, one("b/top"))
	commit(t, h)
	wantScene(t, next)
	closeClean(t, m, next)
}

// wouldWrite says whether s would write structure.
func (s *Stack) wouldWrite() error {
	err := s.life.beginStructure()
	if err == nil {
		s.life.endStructure()
	}
	return err
}

// TestSucceedNoLocks: without locks nothing tells that requests under way
// can't land.
func TestSucceedNoLocks(t *testing.T) {
	m, s := mountScene(t)
	m.noLocks = true
	h := begin(t, s)
	c := one("b/top")
	c.Drained = false
	m.copyOf("copy", "top", false)
	c.Refs[0].Path = "b/copy"
	if _, err := h.Prepare(c); !errors.Is(err, ErrInFlight) || !strings.Contains(err.Error(), "no locks") {
		t.Errorf("%v", err)
	}
	c.Force = true
	if _, err := h.Prepare(c); err != nil {
		t.Error(err)
	} else if err := h.Abort(); err != nil {
		t.Error(err)
	}
}

// TestSucceedCopy: a copy may have been left in use or closed cleanly; it may
// be shorter than the file was, and lack what wasn't known durable.
func TestSucceedCopy(t *testing.T) {
	for _, clean := range []bool{false, true} {
		m, s := mountScene(t)
		writeByte(t, s, 200, 20) // in the file's index, not durable
		m.copyOf("copy", "top", true)
		if clean {
			// Closed and cut to what was used. The data of cluster 200 is
			// durable, as its entry would otherwise not have been written.
			b := m.w.files["copy"].now[:5*4096]
			copy(b[44:], []byte{0, 0, 0, 0})
			m.w.add("copy", b)
		}
		if at := s.table.Load(200).Sector(); at != 4*8 {
			t.Fatalf("cluster 200 is at sector %d", at)
		}
		if v := m.w.files["copy"].now[format.HeaderSize+4*200]; v != 0 {
			t.Fatalf("the copy has cluster 200 at %d", v)
		}
		m.die("a", errGone)
		h, next := mustSucceed(t, s, one("b/copy"))
		commit(t, h)
		wantScene(t, next)
		wantByte(t, next, 200, 20)
		if in := m.w.files["copy"].durable[44]; in != format.InUseDirty&0xff {
			t.Error("in_use is not set, durably")
		}
		if !next.IndexDirty() {
			t.Error("the index is said to be durable")
		}
		if err := next.Flush(); err != nil {
			t.Fatal(err)
		}
		if v := m.w.files["copy"].durable[format.HeaderSize+4*200]; v != 4 {
			t.Errorf("a flush left cluster 200 at %d", v)
		}
		writeByte(t, next, 201, 21)
		wantByte(t, next, 200, 20)
		closeClean(t, m, next)
	}
}

// TestSucceedDiverged: what was durable and is another now is refused, with
// the place, and nothing is written to it.
func TestSucceedDiverged(t *testing.T) {
	m, s := mountScene(t)
	h := begin(t, s)
	change := func(name string, edit func(b []byte) []byte) {
		m.copyOf("copy", "top", false)
		f := m.w.files["copy"]
		f.now = edit(f.now)
		before := bytes.Clone(f.now)
		_, err := h.Prepare(one("b/copy"))
		var format *image.FormatError
		if !errors.Is(err, image.ErrDiverged) && !errors.Is(err, image.ErrCorrupt) || !errors.As(err, &format) {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
		if !bytes.Equal(before, f.now) {
			t.Errorf("%s: written", name)
		}
	}
	change("entry gone", func(b []byte) []byte { b[format.HeaderSize+4*5] = 0; return b })
	change("two entries swapped", func(b []byte) []byte {
		x, y := &b[format.HeaderSize+4*5], &b[format.HeaderSize+4*300]
		*x, *y = *y, *x
		return b
	})
	change("new entry", func(b []byte) []byte { b[format.HeaderSize+4*9] = 4; return append(b, make([]byte, 4096)...) })
	change("cut short", func(b []byte) []byte { return b[:3*4096] })
	change("other disk size", func(b []byte) []byte { b[36] -= 8; return b })
	change("other data offset", func(b []byte) []byte { b[48] += 8; return b })
	// A place that isn't durable must still lie in the file.
	if err := h.Abort(); err != nil {
		t.Fatal(err)
	}
	writeByte(t, s, 200, 20)
	h = begin(t, s)
	change("unsynced place outside", func(b []byte) []byte { b[format.HeaderSize+4*200] = 0; return b[:4*4096] })
	m.copyOf("copy", "top", false)
	if _, err := h.Prepare(one("b/copy")); err != nil {
		t.Error(err)
	}
	if err := h.Abort(); err != nil {
		t.Error(err)
	}
	wantScene(t, s)
	closeClean(t, m, s)
}

// TestSucceedDoubt: what a failed write of the index left is found out from
// the file that goes on.
func TestSucceedDoubt(t *testing.T) {
	for _, arrives := range []bool{false, true} {
		m, s := mountScene(t)
		m.w.fault = func(_ *simFile, kind string, off, n int64) simFault {
			if off < 4096 && kind == "write" {
				return simFault{err: errGone, arrives: arrives}
			}
			if off < 4096 && kind == "read" {
				return simFault{err: errGone}
			}
			return simFault{}
		}
		if _, err := s.WriteAt(clusterOf(20), 200*4096); !errors.Is(err, errGone) {
			t.Fatal(err)
		}
		if err := s.Discard(300*4096, 4096); !errors.Is(err, errGone) {
			t.Fatal(err)
		}
		m.w.fault = nil
		h, next := mustSucceed(t, s, one("b/top"))
		commit(t, h)
		if arrives {
			wantByte(t, next, 200, 20)
			wantByte(t, next, 300, 0)
		} else {
			wantByte(t, next, 200, 0)
			wantByte(t, next, 300, 301&0xff)
		}
		writeByte(t, next, 200, 22)
		writeByte(t, next, 300, 33)
		wantByte(t, next, 200, 22)
		closeClean(t, m, next)
	}
}

// TestSucceedStuckIndex: a write of the index that hangs may land on the new
// top if that is the old one by another way.
func TestSucceedStuckIndex(t *testing.T) {
	m, s := mountScene(t)
	m.copyOf("copy", "top", false)
	hung := m.hangOn("a", func(kind string, off int64) bool { return kind == "write" && off < 4096 })
	late := make(chan error, 1)
	go func() {
		_, err := s.WriteAt(clusterOf(20), 200*4096)
		late <- err
	}()
	<-hung.begun
	h := begin(t, s)
	if n := h.Stuck(); n != 1 {
		t.Errorf("%d stuck", n)
	}
	c := one("b/copy")
	c.Drained = false
	_, err := h.Prepare(c)
	if !errors.Is(err, ErrInFlight) || !strings.Contains(err.Error(), "abort") {
		t.Errorf("%v", err)
	}
	c.Force = true
	next, err := h.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, h)
	wantScene(t, next)
	writeByte(t, next, 200, 22)
	if s.top.File.(*simHandle).closed.Load() {
		t.Error("closed under a call")
	}
	close(hung.release)
	if err := <-late; err != nil {
		t.Errorf("the late one: %v", err) // its index write was the last thing it did
	}
	eventually(t, "close of the old file", s.top.File.(*simHandle).closed.Load)
	wantByte(t, next, 200, 22)
	closeClean(t, m, next)
}

// TestSucceedLateCalls: whatever a call hangs in, once it comes back it writes
// no structure to the old file.
func TestSucceedLateCalls(t *testing.T) {
	for _, on := range []string{"write", "sync", "zero", "sync of a discard", "read back"} {
		t.Run(on, func(t *testing.T) {
			m, s := mountScene(t)
			m.copyOf("copy", "top", false)
			call := func() error { _, err := s.WriteAt(clusterOf(20), 200*4096); return err }
			match := func(kind string, off int64) bool { return kind == on && (kind == "sync" || off >= 4096) }
			switch on {
			case "zero":
				call = func() error { return s.WriteZeroes(5*4096, 4096, true) }
			case "sync of a discard":
				call = func() error { return s.Discard(5*4096, 4096) }
				match = func(kind string, off int64) bool { return kind == "sync" }
			case "read back":
				m.w.fault = func(_ *simFile, kind string, off, n int64) simFault {
					if kind == "write" && off < 4096 {
						return simFault{err: errGone}
					}
					return simFault{}
				}
				match = func(kind string, off int64) bool { return kind == "read" && off < 4096 }
			}
			hung := m.hangOn("a", match)
			late := make(chan error, 1)
			go func() { late <- call() }()
			<-hung.begun
			h := begin(t, s)
			if n := h.Stuck(); n != 0 {
				t.Errorf("%d writes of structure are stuck", n)
			}
			m.w.Lock()
			m.w.fault = nil
			m.w.Unlock()
			c := one("b/copy")
			c.Drained = false
			next, err := h.Prepare(c)
			if err != nil {
				t.Fatal(err)
			}
			commit(t, h)
			wantByte(t, next, 300, 301&0xff)
			m.changed("a")
			close(hung.release)
			err = <-late
			if on == "write" || on == "sync" {
				if !errors.Is(err, ErrSuperseded) {
					t.Errorf("the late one: %v", err)
				}
			}
			eventually(t, "close of the old file", s.top.File.(*simHandle).closed.Load)
			for _, c := range m.changed("a") {
				if c != "a sync 0" {
					t.Errorf("late: %s", c)
				}
			}
			closeClean(t, m, next)
		})
	}
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

// lateWrite has a write to the old storage, which turns out to be the new one
// as well, land late. It returns what it did to clusters of others.
func lateWrite(t *testing.T, how string, careless bool) (hurt bool) {
	m, s := mountScene(t)
	m.noLocks = true
	m.unlock(s.top.File.(*simHandle))
	var land func()
	switch how {
	case "transfer":
		r := s.NewReader()
		at := r.Locate(5*4096, 4096, true)
		land = func() {
			if _, err := s.top.File.WriteAt(clusterOf(99), at.Offset); err != nil {
				t.Error(err)
			}
			r.Leave(at.Token)
		}
	case "call", "next cluster": // the second writes on behind what it hangs in
		n := map[string]int{"call": 1, "next cluster": 2}[how]
		h := m.hangOn("a", func(kind string, off int64) bool { return kind == "write" && off >= 4096 })
		late := make(chan error, 1)
		go func() {
			_, err := s.WriteAt(bytes.Repeat(clusterOf(99), n), 5*4096)
			late <- err
		}()
		<-h.begun
		land = func() {
			close(h.release)
			<-late
		}
	}
	s.life.careless = careless
	c := one("b/top")
	c.Drained, c.Force = false, !careless // forced: there are no locks
	if careless {
		m.noLocks = false
	}
	h, next := mustSucceed(t, s, c)
	commit(t, h)
	if err := next.Discard(5*4096, 4096); err != nil {
		t.Fatal(err)
	}
	for i := int64(10); i < 13; i++ {
		writeByte(t, next, i, byte(i))
	}
	land()
	p := make([]byte, 4096)
	for i := int64(10); i < 13; i++ {
		if _, err := next.ReadAt(p, i*4096); err != nil || !bytes.Equal(p, clusterOf(byte(i))) {
			hurt = true
		}
	}
	eventually(t, "close of the old file", s.top.File.(*simHandle).closed.Load)
	if !careless {
		// Now that nothing is under way, places are reused again.
		if !next.life.predecessorsIdle() {
			t.Error("something is still taken for under way")
		}
		if err := next.Discard(10*4096, 4096); err != nil {
			t.Fatal(err)
		}
		if next.space.free.N == 0 {
			t.Error("a discarded place stays unused")
		}
	}
	return hurt
}

// TestSucceedLateWrites: places that the old stack may still write to are
// given to nobody.
func TestSucceedLateWrites(t *testing.T) {
	for _, how := range []string{"transfer", "call", "next cluster"} {
		if lateWrite(t, how, false) {
			t.Errorf("%s: landed in the cluster of another", how)
		}
		if !lateWrite(t, how, true) {
			t.Errorf("%s: the control is not hurt", how)
		}
	}
}

// TestSucceedUndo: a succession that doesn't come to be leaves the file as it
// was, and the old stack goes on.
func TestSucceedUndo(t *testing.T) {
	m, s := mountScene(t)
	m.copyOf("copy", "top", false)
	f := m.w.files["copy"]
	copy(f.now[44:], []byte{0, 0, 0, 0}) // closed
	was := bytes.Clone(f.now)
	h, next := mustSucceed(t, s, one("b/copy"))
	if bytes.Equal(was, f.now) {
		t.Error("in_use is not set")
	}
	if _, err := s.WriteAt(clusterOf(9), 9*4096); !errors.Is(err, ErrSuperseded) {
		t.Errorf("the old one writes: %v", err)
	}
	if err := h.Abort(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(was, f.now) || !bytes.Equal(was, f.durable) {
		t.Error("the copy is not as it was")
	}
	if !next.top.File.(*simHandle).closed.Load() {
		t.Error("the copy is still open")
	}
	if _, err := next.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("the new one reads: %v", err)
	}
	// As well with the same file, whose lock goes there and back.
	for range 2 {
		h, next = mustSucceed(t, s, one("b/top"))
		if s.top.File.Locked() || !next.top.File.Locked() {
			t.Error("the lock did not change hands")
		}
		if err := h.Abort(); err != nil {
			t.Fatal(err)
		}
		if !s.top.File.Locked() {
			t.Error("the lock did not come back")
		}
	}
	wantScene(t, s)
	writeByte(t, s, 7, 7)
	closeClean(t, m, s)
}

// TestSucceedForce: an intended substitute counts as it is, if it fits.
func TestSucceedForce(t *testing.T) {
	m, s := mountScene(t)
	other, err := Open([]image.Ref{m.addImage("other", 1, 8, 8*sceneClusters)}, Options{open: m.open})
	if err != nil {
		t.Fatal(err)
	}
	writeByte(t, other, 33, 3)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	h := begin(t, s)
	c := one("b/other")
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrDiverged) {
		t.Errorf("%v", err)
	}
	c.Force = true
	next, err := h.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, h)
	wantByte(t, next, 33, 3)
	wantByte(t, next, 5, 0)
	writeByte(t, next, 5, 50)
	if a := next.Status().Allocated; a != 2 {
		t.Errorf("%d allocated", a)
	}
	// What doesn't fit the disk never does.
	h = begin(t, next)
	for _, size := range []uint64{8*sceneClusters - 8, 8*sceneClusters + 8} {
		m.addImage("small", 2, 8, size)
		c = one("b/small")
		c.Force = true
		if _, err := h.Prepare(c); !errors.Is(err, image.ErrGeometry) {
			t.Errorf("%d sectors: %v", size, err)
		}
	}
	m.addImage("coarse", 2, 16, 8*sceneClusters)
	c = one("b/coarse")
	c.Force = true
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrGeometry) {
		t.Errorf("other cluster size: %v", err)
	}
	if err := h.Abort(); err != nil {
		t.Error(err)
	}
	closeClean(t, m, next)
}

// addImage adds one to be opened by mount b.
func (m *simMounts) addImage(name string, version int, clusterSectors uint32, sectors uint64) image.Ref {
	m.w.addImage(name, version, clusterSectors, sectors)
	return image.Ref{Path: "b/" + name}
}

// TestSucceedRefuses: misuse is said to be that.
func TestSucceedRefuses(t *testing.T) {
	m, s := mountScene(t)
	h := begin(t, s)
	c := one("b/top")
	c.Reopen = nil
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrGeometry) {
		t.Errorf("%v", err)
	}
	c = one("b/top")
	c.Reopen[0] = false
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrGeometry) {
		t.Errorf("%v", err)
	}
	c = one("b/top")
	c.Refs[0].Raw = true
	if _, err := h.Prepare(c); !errors.Is(err, image.ErrDiverged) {
		t.Errorf("%v", err)
	}
	if err := s.Close(); !errors.Is(err, ErrSuperseded) {
		t.Errorf("close: %v", err)
	}
	if m.w.files["top"].now[44] == 0 {
		t.Error("in_use was cleared")
	}
	if _, err := h.Prepare(one("b/top")); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	if err := h.Abort(); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}
