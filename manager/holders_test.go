package manager

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"holdfast/standby"
)

// TestCheckHolders: the check is on while anybody holds it, however often; who gives back what it
// doesn't have changes nothing, and is counted and told.
func TestCheckHolders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var word atomic.Uint32
		var told []standby.Inconsistency
		h := newHolders(func(on bool) error {
			word.Store(map[bool]uint32{true: 1}[on])
			return nil
		}, func(i standby.Inconsistency) { told = append(told, i) })
		want := map[string]int{}
		unbalanced := 0
		name := rapid.SampledFrom([]string{"hand", "lio", "tgt"})
		t.Repeat(map[string]func(*rapid.T){
			"enable": func(t *rapid.T) {
				n := name.Draw(t, "holder")
				want[n]++
				if err := h.Enable(n); err != nil {
					t.Fatal(err)
				}
			},
			"disable": func(t *rapid.T) {
				n := name.Draw(t, "holder")
				err := h.Disable(n)
				if want[n] == 0 {
					if unbalanced++; !errors.Is(err, errUnbalanced) {
						t.Fatalf("gave back what it had not: %v", err)
					}
					return
				}
				if want[n]--; want[n] == 0 {
					delete(want, n)
				}
				if err != nil {
					t.Fatal(err)
				}
			},
			"broken": func(t *rapid.T) {
				word.Store(1 - word.Load())
				good := func(on bool) bool { return on == (word.Load() == 1) }
				if mended, err := h.Mend(good); !mended || err != nil {
					t.Fatalf("mended %v, %v", mended, err)
				}
				if mended, err := h.Mend(good); mended || err != nil {
					t.Fatalf("what is good was mended: %v, %v", mended, err)
				}
			},
			"": func(t *rapid.T) {
				on := len(want) > 0
				if h.On() != on || (word.Load() == 1) != on || len(h.Holders()) != len(want) || !slices.IsSorted(h.Holders()) {
					t.Fatalf("on %v, word %d, holders %v, want %v", h.On(), word.Load(), h.Holders(), want)
				}
				if len(told) != unbalanced || int(h.Inconsistencies()[standby.UnbalancedDisable]) != unbalanced {
					t.Fatalf("told %v, counted %v, want %d", told, h.Inconsistencies(), unbalanced)
				}
			},
		})
	})
}

// TestHoldersCannotTurn: who could not have it turned on knows, and has it when that works again.
func TestHoldersCannotTurn(t *testing.T) {
	broken := errors.New("no space")
	fails, is := broken, false
	h := newHolders(func(on bool) error {
		if fails == nil {
			is = on
		}
		return fails
	}, func(standby.Inconsistency) {})
	if err := h.Enable("hand"); err != broken || is {
		t.Errorf("%v, on: %v", err, is)
	}
	fails = nil
	if err := h.Apply(); err != nil || !is {
		t.Errorf("%v, on: %v", err, is)
	}
	if err := h.Disable("hand"); err != nil || is {
		t.Errorf("%v, on: %v", err, is)
	}
}
