package server

import (
	"sync"
	"time"

	"holdfast/api"
	"holdfast/internal/cond"
	"holdfast/state"
)

// known is what is known of the device now, and who waits for that to change.
type known struct {
	name    string
	changed cond.Cond // somebody may see something else now

	mu       sync.Mutex
	phase    Phase
	rec      *state.Record // nil: Empty
	dev      live          // not nil: Serving or Removing
	failing  failing       // what fails the I/O while it can't be recovered; nil: nothing
	problem  string
	stopping bool
	used     time.Time // when somebody last wanted something, or something changed
	// unreleased: the last attempt to recover it found that the driver takes it for served.
	unreleased bool
}

// set changes what is known of the device.
func (k *known) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
	k.used = time.Now()
	k.changed.Broadcast()
}

// become changes the phase.
func (k *known) become(p Phase, problem string) {
	k.set(func() { k.phase, k.problem = p, problem })
}

// record is the device's now, for reading; nil: there is none.
func (k *known) record() *state.Record {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rec
}

// Unanswered is for how long a queue of the device has owed a sign of life. While the device is
// taken away its queues end, and owe nothing.
func (k *known) Unanswered() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.phase != Serving {
		return 0
	}
	return k.dev.Unanswered()
}

// served is the device, to do something quick to it beside whatever operation is under way.
func (k *known) served() (live, error) {
	k.mu.Lock()
	dev := k.dev
	k.mu.Unlock()
	if dev == nil {
		return nil, k.notServed()
	}
	return dev, nil
}

// notServed is the refusal to do something to a device that is not served now.
func (k *known) notServed() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.rec == nil {
		return api.Errorf(api.CodeNotFound, "there is no device %q", k.name)
	}
	return api.Errorf(api.CodeConflict, "device %q is %s, and not served now; 'holdfast why %s' tells more", k.name, k.state(), k.name)
}

// serves: or is about to.
func (k *known) serves() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.dev != nil || k.phase == Recovering
}

func (k *known) waitsToBeCreated() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.phase == Waiting || k.phase == Creating
}

// state is the phase as it is shown, of a device that isn't served. mu is held.
func (k *known) state() string {
	switch {
	case k.phase == Empty:
		return api.StateRemoved
	case k.phase == Lost && k.rec.Closed:
		return api.StateEnded
	case k.phase != Recovering:
		return string(k.phase)
	case k.failing != nil:
		return api.StateUnrecovered
	case k.unreleased:
		return api.StateUnreleased
	}
	return api.StateRecovering
}
