package stack

import (
	"bytes"
	"errors"
	"testing"
)

// TestHandoverStates: each step in each state does what it says, or is ErrHandover and changes
// nothing.
func TestHandoverStates(t *testing.T) {
	for _, c := range []struct {
		name   string
		steps  string // p(repare), c(ommit), a(bort); in capitals: ErrHandover
		served string // by whom then: old, new
	}{
		{"abort", "a", "old"},
		{"abort twice", "aa", "old"},
		{"commit of nothing", "Ca", "old"},
		{"commit after abort", "aC", "old"},
		{"prepare after abort", "aP", "old"},
		{"prepared and aborted", "pa", "old"},
		{"prepared twice", "pPa", "old"},
		{"commit of what was aborted", "paC", "old"},
		{"commit", "pc", "new"},
		{"commit twice", "pcc", "new"},
		{"abort after commit", "pca", "new"},
		{"prepare after commit", "pcP", "new"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, s := mountScene(t)
			m.copyOf("copy", "top", false)
			open := OpenHandovers()
			h := begin(t, s)
			var next *Stack
			for i, step := range c.steps {
				var err error
				switch step {
				case 'p', 'P':
					var n *Stack
					if n, err = h.Prepare(one("b/copy")); err == nil {
						next = n
					}
				case 'c', 'C':
					err = h.Commit()
				case 'a':
					err = h.Abort()
				}
				if refused := step < 'a'; refused != errors.Is(err, ErrHandover) || !refused && err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
			}
			if n := OpenHandovers(); n != open {
				t.Errorf("%d handovers are open that weren't", n-open)
			}
			if c.served == "old" {
				wantScene(t, s)
				writeByte(t, s, 7, 7)
				closeClean(t, m, s)
				return
			}
			if _, err := s.BeginHandover(); !errors.Is(err, ErrClosed) {
				t.Errorf("another handover of what was handed over: %v", err)
			}
			wantScene(t, next)
			writeByte(t, next, 7, 7)
			closeClean(t, m, next)
		})
	}
}

// TestHandoverTwice: one at a time, and one after another.
func TestHandoverTwice(t *testing.T) {
	m, s := mountScene(t)
	h := begin(t, s)
	if _, err := s.BeginHandover(); !errors.Is(err, ErrHandover) {
		t.Errorf("a second one: %v", err)
	}
	if err := h.Abort(); err != nil {
		t.Fatal(err)
	}
	h2, next := mustSucceed(t, s, one("b/top"))
	if err := h.Abort(); err != nil { // the first's: of no consequence
		t.Error(err)
	}
	if _, err := s.WriteAt(clusterOf(9), 9*4096); !errors.Is(err, ErrSuperseded) {
		t.Errorf("the first handover's abort has the old one write: %v", err)
	}
	commit(t, h2)
	closeClean(t, m, next)
}

// TestHandoverForgotten: closing a stack whose handover has no end is an error, and in_use stays.
func TestHandoverForgotten(t *testing.T) {
	m, s := mountScene(t)
	was := bytes.Clone(m.w.files["top"].now)
	open := OpenHandovers()
	h := begin(t, s)
	if OpenHandovers() != open+1 {
		t.Error("it isn't counted")
	}
	if err := s.Close(); !errors.Is(err, ErrHandover) || !errors.Is(err, ErrSuperseded) {
		t.Errorf("close: %v", err)
	}
	if !bytes.Equal(was, m.w.files["top"].now) {
		t.Error("the file was changed")
	}
	if err := h.Abort(); !errors.Is(err, ErrClosed) {
		t.Errorf("abort of a closed one: %v", err)
	}
	if OpenHandovers() != open {
		t.Error("it is still counted")
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
