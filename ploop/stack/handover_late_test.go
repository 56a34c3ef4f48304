package stack

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

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
