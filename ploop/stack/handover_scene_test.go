package stack

import (
	"testing"
	"time"

	"holdfast/ploop"
	"holdfast/ploop/image"
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
