package stack

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
	"holdfast/ploop/image"
)

// TestLateSyncOfAnEndedStack: a sync that hung in storage that was replaced fails when the
// stack has ended and its table's memory was given back.
func TestLateSyncOfAnEndedStack(t *testing.T) {
	dir := memDir(t)
	ref := mustCreate(t, filepath.Join(dir, "old"), ploop.CreateOptions{Size: 8 << 20})
	s := mustOpen(t, []image.Ref{ref}, Options{})
	if _, err := s.WriteAt(append(make([]byte, 4095), 1), 0); err != nil {
		t.Fatal(err)
	}
	w := &FlushWaiter{Wake: func(FlushState, error) {}}
	if state := s.FlushBegin(w); state != FlushLead {
		t.Fatal(state)
	}
	b, err := os.ReadFile(ref.Path)
	if err != nil {
		t.Fatal(err)
	}
	other := image.Ref{Path: filepath.Join(dir, "new")}
	if err := os.WriteFile(other.Path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	h := begin(t, s)
	next, err := h.Prepare(Succession{Refs: []image.Ref{other}, Reopen: []bool{true}, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	commit(t, h)
	for range 1000 {
		s.index.lost.Lock()
		gone := s.index.lost.gone
		s.index.lost.Unlock()
		if gone {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if state, err := s.FlushEnd(w, unix.EIO); state != FlushFailed || err == nil {
		t.Errorf("%v, %v", state, err)
	}
}
