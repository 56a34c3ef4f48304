package standby

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"
)

// What a switch answers that can't be moved.
var (
	ErrUnbalanced   = errors.New("the standby check is not held by this holder")
	ErrAttached     = errors.New("the consumer has a lease already")
	ErrNotAttached  = errors.New("the consumer has no lease")
	ErrNotSupported = errors.New("standby is not supported here: the standby check is off, or no consumer has a lease")
)

// Inconsistency is a way in which key, leases and flag contradict each other.
type Inconsistency string

const (
	// EnabledKeyOff: a device has STANDBY_EN while the key is off.
	EnabledKeyOff Inconsistency = "enabled-key-off"
	// FlagNotEnabled: a device has STANDBY without STANDBY_EN.
	FlagNotEnabled Inconsistency = "standby-not-enabled"
	// DetachInStandby: the last lease was dropped in standby.
	DetachInStandby Inconsistency = "detach-in-standby"
	// UnbalancedDetach: a lease was dropped that was not held.
	UnbalancedDetach Inconsistency = "unbalanced-detach"
	// UnbalancedDisable: the key was given back by who did not hold it.
	UnbalancedDisable Inconsistency = "unbalanced-disable"
)

var explanations = map[Inconsistency]string{
	EnabledKeyOff:     "a consumer has a lease on the device, but the standby check is off: its errors pass through; turn the check on",
	FlagNotEnabled:    "the device is marked in standby, but no consumer has a lease: nothing is held; attach one, or clear the mark",
	DetachInStandby:   "the last consumer left while the device was in standby: what was held is processed, and gets its errors",
	UnbalancedDetach:  "a consumer gave a lease back that it did not have",
	UnbalancedDisable: "the standby check was turned off by a holder that had not turned it on",
}

// String explains it in a sentence.
func (i Inconsistency) String() string { return explanations[i] }

// Key is the process-wide switch. It is on while anybody holds it.
type Key struct {
	mu      sync.Mutex
	now     func() time.Time
	report  func(Inconsistency)
	holders map[string]int
	devices map[*Device]struct{}
	wrong   map[Inconsistency]uint64
}

// NewKey makes a key that is off. report takes the key's own inconsistencies, under the
// rules of Options.Changed; nil: nobody. now is the clock, time.Now but in tests.
func NewKey(now func() time.Time, report func(Inconsistency)) *Key {
	if report == nil {
		report = func(Inconsistency) {}
	}
	return &Key{now: now, report: report, holders: map[string]int{}, devices: map[*Device]struct{}{}, wrong: map[Inconsistency]uint64{}}
}

// Enable takes the key for a holder, once more if it has it already.
func (k *Key) Enable(holder string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.holders[holder]++
	if len(k.holders) == 1 && k.holders[holder] == 1 {
		k.turned()
	}
}

// Disable gives back what one Enable took. ErrUnbalanced: the holder has none left,
// and nothing changes.
func (k *Key) Disable(holder string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.holders[holder] == 0 {
		k.wrong[UnbalancedDisable]++
		k.report(UnbalancedDisable)
		return ErrUnbalanced
	}
	if k.holders[holder]--; k.holders[holder] == 0 {
		delete(k.holders, holder)
	}
	if len(k.holders) == 0 {
		k.turned()
	}
	return nil
}

// turned tells every device that the key went on or off.
func (k *Key) turned() {
	for d := range k.devices {
		d.settle(Change{Kind: FuseChanged})
	}
}

// On says whether anybody holds the key.
func (k *Key) On() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.on()
}

func (k *Key) on() bool { return len(k.holders) > 0 }

// Holders are those who hold the key, sorted.
func (k *Key) Holders() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]string{}, slices.Sorted(maps.Keys(k.holders))...)
}

// Inconsistencies counts the key's own.
func (k *Key) Inconsistencies() map[Inconsistency]uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.wrong)
}
