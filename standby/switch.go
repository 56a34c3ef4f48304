package standby

import (
	"errors"
	"sync"
	"time"
)

var (
	// ErrAttached is returned by Attach when the consumer has a lease.
	ErrAttached = errors.New("the consumer has a lease already")

	// ErrNotAttached is returned by Detach when the consumer has none.
	ErrNotAttached = errors.New("the consumer has no lease")

	// ErrNotSupported is returned by Set when a fuse is off: the key, or STANDBY_EN.
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

// Word says whether the standby check is on: 0 is off. It may be an *atomic.Uint32, or memory
// that is shared with whoever turns it.
type Word interface{ Load() uint32 }

// Switch is a process' view of the standby check, with the devices that depend on it.
type Switch struct {
	word Word
	now  func() time.Time

	mu      sync.Mutex
	on      bool // as the devices know it
	devices map[*Device]struct{}
}

// NewSwitch makes a switch of a word, without devices.
func NewSwitch(word Word) *Switch {
	return &Switch{word: word, now: time.Now, devices: map[*Device]struct{}{}}
}

// On reads the word.
func (s *Switch) On() bool { return s.word.Load() != 0 }

// Turned says that the word may have changed: all devices are brought in line with it. Each
// operation on a device does so by itself; without Turned a change waits for the next one.
func (s *Switch) Turned() {
	s.lock()
	s.mu.Unlock()
}

// lock begins an operation on a device. What the word says now is so until its end, and
// every device knows.
func (s *Switch) lock() {
	s.mu.Lock()
	on := s.On()
	if on == s.on {
		return
	}
	s.on = on
	for d := range s.devices {
		d.settle(Change{Kind: FuseChanged})
	}
}
