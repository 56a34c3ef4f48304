package manager

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"holdfast/standby"
)

// errUnbalanced is returned when a holder gives the key back that does not hold it.
var errUnbalanced = errors.New("the standby check is not held by this holder")

// holders are those who hold the standby check, which is on while there is any.
type holders struct {
	mu     sync.Mutex
	turn   func(on bool) error // makes it so for all devices
	report func(standby.Inconsistency)
	count  map[string]int
	wrong  map[standby.Inconsistency]uint64
}

// newHolders is of a check that nobody holds. report must neither block nor call back.
func newHolders(turn func(on bool) error, report func(standby.Inconsistency)) *holders {
	return &holders{turn: turn, report: report, count: map[string]int{}, wrong: map[standby.Inconsistency]uint64{}}
}

// Enable takes the check for a holder, once more if it has it already. After an error, too,
// it has it: the error is that of turning it on.
func (h *holders) Enable(holder string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count[holder]++
	if len(h.count) > 1 || h.count[holder] > 1 {
		return nil
	}
	return h.turn(true)
}

// Disable gives back what one Enable took. errUnbalanced: the holder has none left,
// and nothing changes.
func (h *holders) Disable(holder string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.count[holder] == 0 {
		h.wrong[standby.UnbalancedDisable]++
		h.report(standby.UnbalancedDisable)
		return errUnbalanced
	}
	if h.count[holder]--; h.count[holder] == 0 {
		delete(h.count, holder)
	}
	if len(h.count) > 0 {
		return nil
	}
	return h.turn(false)
}

// Apply turns the check to what it should be, whatever it is.
func (h *holders) Apply() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.turn(len(h.count) > 0)
}

// Mend is Apply unless the check is good as it is.
func (h *holders) Mend(good func(on bool) bool) (mended bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	on := len(h.count) > 0
	if good(on) {
		return false, nil
	}
	return true, h.turn(on)
}

// On says whether anybody holds the check.
func (h *holders) On() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.count) > 0
}

// Holders are those who hold the check, sorted.
func (h *holders) Holders() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string{}, slices.Sorted(maps.Keys(h.count))...)
}

// Inconsistencies counts the check's own.
func (h *holders) Inconsistencies() map[standby.Inconsistency]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.wrong)
}
