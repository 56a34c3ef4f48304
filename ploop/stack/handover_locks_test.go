package stack

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"holdfast/ploop/image"
)

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
