package ublk

import "testing"

// TestSpareTurns: one queue has the spare buffer at a time, in the order in which they came
// for it, and who wants it again comes behind the others.
func TestSpareTurns(t *testing.T) {
	s := spare{waiting: make([]*Queue, 0, 3)}
	a, b, c := new(Queue), new(Queue), new(Queue)
	if !s.take(a) || s.take(b) || s.take(c) {
		t.Fatal("the first one has it, and only that")
	}
	for i, step := range []struct {
		from  *Queue
		again bool
		to    *Queue
	}{{a, true, b}, {b, false, c}, {c, true, a}, {a, true, c}, {c, false, a}, {a, true, a}, {a, false, nil}} {
		if to := s.pass(step.from, step.again); to != step.to {
			t.Errorf("step %d: it goes to another one", i)
		}
	}
	if cap(s.waiting) != 3 {
		t.Error("memory was allocated")
	}
	if !s.take(b) {
		t.Error("nobody has it, and it can't be had")
	}
}
