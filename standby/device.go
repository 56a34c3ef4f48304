package standby

import (
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Kind is what kind of change happened.
type Kind uint8

const (
	Entered     Kind = iota + 1 // STANDBY was set
	Resumed                     // STANDBY was cleared by a resume
	Cleared                     // STANDBY was cleared without one
	Expired                     // its time is up: requests fail until it ends
	Attached                    // a consumer took a lease
	Detached                    // a consumer dropped its lease
	FuseChanged                 // the key went on or off
	GateChanged                 // a reason other than standby came or went
	Kept                        // a standby that an error began is by hand now
	FoundBad                    // an error is its place's own
	Inconsistent
)

// Change is what the owner of a device gets to know. Held says what becomes of the requests that
// it keeps: Pass: process them anew; Fail: end them with EIO; Hold: keep them.
type Change struct {
	Kind          Kind
	Held          Verdict
	Cause         string // of Entered, Resumed, Cleared and FoundBad
	Consumer      string // of Attached and Detached
	Inconsistency Inconsistency
}

// Options are what a Device is made with.
type Options struct {
	// Triggers are the errors that lead to standby; nil: DefaultTriggers.
	Triggers []unix.Errno
	// Changed hears of every change, in order. The switch's lock is held: it must
	// neither block nor call this package, but for Gate's methods.
	Changed func(Change)
}

// Device is one device's part of the machine.
type Device struct {
	key      *Switch
	gate     Gate
	triggers []unix.Errno
	changed  func(Change)

	// Under key.mu:
	leases  map[string]struct{}
	flag    bool
	expired bool
	reasons Reason // but for Standby
	cause   string
	errno   unix.Errno
	byHand  bool
	since   time.Time
	is      map[Inconsistency]bool
	ep      episode
	stats   Stats
}

// Stats are totals since the device was made.
type Stats struct {
	Entered uint64 // times that STANDBY was set
	Resumed uint64 // times that it was cleared by a resume
	// InStandby is the time with STANDBY set, but for the current one.
	InStandby       time.Duration
	Triggers        map[unix.Errno]uint64 // errors that met both fuses on, by errno
	Inconsistencies map[Inconsistency]uint64
}

// NewDevice adds a device to a switch: no lease, no flag, gate open.
func NewDevice(s *Switch, o Options) *Device {
	d := &Device{key: s, triggers: o.Triggers, changed: o.Changed,
		leases: map[string]struct{}{}, is: map[Inconsistency]bool{},
		stats: Stats{Triggers: map[unix.Errno]uint64{}, Inconsistencies: map[Inconsistency]uint64{}}}
	if d.triggers == nil {
		d.triggers = DefaultTriggers
	}
	if d.changed == nil {
		d.changed = func(Change) {}
	}
	s.lock()
	defer s.mu.Unlock()
	s.devices[d] = struct{}{}
	return d
}

// Close takes the device out of its switch. Its gate stays as it is.
func (d *Device) Close() {
	d.key.mu.Lock()
	defer d.key.mu.Unlock()
	delete(d.key.devices, d)
}

// Gate is the device's gate.
func (d *Device) Gate() *Gate { return &d.gate }

func (d *Device) supported() bool { return d.key.on && len(d.leases) > 0 }

// settle brings the gate in line with everything else, checks for inconsistencies, and
// reports the change c. c.Held is filled in, unless it is Fail already.
func (d *Device) settle(c Change) {
	w := d.reasons
	if d.flag && d.supported() {
		w |= Standby
		if d.expired {
			w |= failing
		}
	}
	d.gate.word.Store(uint32(w))
	if c.Held != Fail {
		c.Held = d.gate.Verdict()
	}
	d.changed(c)
	d.checkFor(EnabledKeyOff, len(d.leases) > 0 && !d.key.on)
	d.checkFor(FlagNotEnabled, d.flag && len(d.leases) == 0)
}

// checkFor reports an inconsistency that lasts, when it begins.
func (d *Device) checkFor(i Inconsistency, is bool) {
	was := d.is[i]
	d.is[i] = is
	if is && !was {
		d.wrong(i)
	}
}

func (d *Device) wrong(i Inconsistency) {
	d.stats.Inconsistencies[i]++
	d.changed(Change{Kind: Inconsistent, Inconsistency: i, Held: Hold})
}

// Attach takes a lease for a consumer. ErrAttached: it has one.
func (d *Device) Attach(consumer string) error {
	d.key.lock()
	defer d.key.mu.Unlock()
	if _, ok := d.leases[consumer]; ok {
		return ErrAttached
	}
	d.leases[consumer] = struct{}{}
	d.settle(Change{Kind: Attached, Consumer: consumer})
	return nil
}

// Detach drops a consumer's lease. ErrNotAttached: it has none.
func (d *Device) Detach(consumer string) error {
	d.key.lock()
	defer d.key.mu.Unlock()
	if _, ok := d.leases[consumer]; !ok {
		d.wrong(UnbalancedDetach)
		return ErrNotAttached
	}
	inStandby := d.flag && d.supported() && len(d.leases) == 1
	delete(d.leases, consumer)
	if inStandby {
		d.wrong(DetachInStandby)
	}
	d.settle(Change{Kind: Detached, Consumer: consumer})
	return nil
}

// Fault is the check at the end of a request that met an error: errno is the error,
// cause says it in words, p is its place, and answers says that the storage was found to
// answer elsewhere since (see Known). Hold: the request is to be kept, since the device is in
// standby, now or already. Pass: the error is the request's result.
func (d *Device) Fault(errno unix.Errno, cause string, p Place, answers bool) Verdict {
	if !slices.Contains(d.triggers, errno) {
		return Pass
	}
	d.key.lock()
	defer d.key.mu.Unlock()
	if !d.supported() {
		return Pass
	}
	d.stats.Triggers[errno]++
	if answers && d.own(errno, cause, p) {
		return Pass
	}
	if !d.flag {
		d.set(errno, cause, false)
	}
	d.ep.suspects(errno, p)
	return d.gate.Verdict()
}

// Set sets STANDBY by hand. One that an error began is by hand from then on, and not ended
// by Reopened: who sets it counts on it, perhaps to copy an image. ErrNotSupported: a fuse
// is off.
func (d *Device) Set() error {
	d.key.lock()
	defer d.key.mu.Unlock()
	if !d.supported() {
		return ErrNotSupported
	}
	switch {
	case !d.flag:
		d.set(0, "by hand", true)
	case !d.byHand:
		d.byHand = true
		d.settle(Change{Kind: Kept})
	}
	return nil
}

func (d *Device) set(errno unix.Errno, cause string, byHand bool) {
	d.flag, d.expired, d.errno, d.cause, d.byHand, d.since = true, false, errno, cause, byHand, d.key.now()
	d.stats.Entered++
	d.ep.begin(d.since, byHand)
	d.settle(Change{Kind: Entered, Cause: cause})
}

// Restored is a standby that an earlier server of the device was in.
type Restored struct {
	ByHand bool
	Errno  unix.Errno
	Cause  string
	Since  time.Time
}

// Restore goes on with the standby of an earlier server of this device, whatever the
// fuses say: with one of them off it is an inconsistency, as it was before. To be called
// before there are requests.
func (d *Device) Restore(r Restored) {
	d.key.lock()
	defer d.key.mu.Unlock()
	d.set(r.Errno, r.Cause, r.ByHand)
	d.since = r.Since
}

// Resume clears STANDBY after files were replaced: what was held is processed. It says
// whether STANDBY was set.
func (d *Device) Resume() bool {
	return d.clear(Change{Kind: Resumed, Cause: "by a replacement"}, false)
}

// Reopened is Resume for one that nobody asked for: a standby by hand stays.
func (d *Device) Reopened() bool {
	return d.clear(Change{Kind: Resumed, Cause: "by reopening the files, which answer again"}, true)
}

// Clear ends a standby without a resume: what is held fails. It works with a fuse off
// as well, to put the flag right, and fails nothing then, as nothing is held. It says
// whether STANDBY was set.
func (d *Device) Clear(cause string) bool { return d.clear(Change{Kind: Cleared, Cause: cause}, false) }

func (d *Device) clear(c Change, unlessByHand bool) bool {
	d.key.lock()
	defer d.key.mu.Unlock()
	if !d.flag || d.byHand && unlessByHand {
		return false
	}
	if c.Kind == Cleared && d.supported() {
		c.Held = Fail
	}
	d.flag, d.expired = false, false
	now := d.key.now()
	d.stats.InStandby += now.Sub(d.since)
	d.ep.end(now, now.Sub(d.since), c.Kind == Resumed)
	if c.Kind == Resumed {
		d.stats.Resumed++
	}
	d.settle(c)
	return true
}

// Expire says that the standby that began at since has lasted too long: held requests
// and new ones fail until it ends. It does nothing if that standby has ended.
func (d *Device) Expire(since time.Time) bool {
	d.key.lock()
	defer d.key.mu.Unlock()
	if !d.flag || d.expired || !d.since.Equal(since) {
		return false
	}
	d.expired = true
	d.settle(Change{Kind: Expired})
	return true
}

// Hold closes the gate for a reason.
func (d *Device) Hold(r Reason) {
	d.key.lock()
	defer d.key.mu.Unlock()
	d.reasons |= r &^ (Standby | failing)
	d.settle(Change{Kind: GateChanged})
}

// Release takes a reason away.
func (d *Device) Release(r Reason) {
	d.key.lock()
	defer d.key.mu.Unlock()
	d.reasons &^= r
	d.settle(Change{Kind: GateChanged})
}

// Status is a picture of a device.
type Status struct {
	Supported bool      // both fuses are on
	Enabled   bool      // STANDBY_EN
	Flag      bool      // STANDBY
	Expired   bool      // requests fail: its time is up
	Consumers []string  // sorted
	Since     time.Time // Flag's
	Cause     string
	Errno     unix.Errno // 0: by hand
	ByHand    bool
	// Spent is the time in earlier standbys of the same episode: those that followed one
	// another too closely for the device to have been well in between.
	Spent   time.Duration
	Bad     []BadRange // whose errors are their own
	Reasons Reason
	Stats   Stats // InStandby with the current one
}

// Value is how the attribute reads.
func (s *Status) Value() string {
	switch {
	case !s.Supported:
		return "not supported"
	case s.Flag:
		return "on"
	}
	return "off"
}

// Status takes the picture.
func (d *Device) Status() Status {
	d.key.lock()
	defer d.key.mu.Unlock()
	s := Status{
		Supported: d.supported(), Enabled: len(d.leases) > 0, Flag: d.flag, Expired: d.expired,
		Consumers: append([]string{}, slices.Sorted(maps.Keys(d.leases))...),
		Reasons:   d.gate.Reasons(), Stats: d.stats, Bad: slices.Clone(d.ep.bad),
	}
	s.Stats.Triggers, s.Stats.Inconsistencies = maps.Clone(s.Stats.Triggers), maps.Clone(s.Stats.Inconsistencies)
	if d.flag {
		s.Since, s.Cause, s.Errno, s.ByHand = d.since, d.cause, d.errno, d.byHand
		s.Spent = d.ep.spent
		s.Stats.InStandby += d.key.now().Sub(d.since)
	}
	return s
}
