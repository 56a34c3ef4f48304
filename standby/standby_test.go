package standby

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fixture is a key with one device, a clock that is turned by hand, and a list of what
// was warned of.
type fixture struct {
	k      *testKey
	d      *Device
	now    time.Time
	warned []string
	held   Verdict // of the last change
}

// testKey is a switch of the process' own, and who holds it.
type testKey struct {
	*Switch
	word    atomic.Uint32
	holders map[string]int
}

var errNotHeld = errors.New("not held")

func newTestKey(now func() time.Time) *testKey {
	k := &testKey{holders: map[string]int{}}
	k.Switch = NewSwitch(&k.word)
	k.now = now
	return k
}

func (k *testKey) Enable(holder string) {
	k.holders[holder]++
	k.word.Store(1)
	k.Turned()
}

func (k *testKey) Disable(holder string) error {
	if k.holders[holder] == 0 {
		return errNotHeld
	}
	if k.holders[holder]--; k.holders[holder] == 0 {
		delete(k.holders, holder)
	}
	if len(k.holders) == 0 {
		k.word.Store(0)
	}
	k.Turned()
	return nil
}

func newFixture() *fixture {
	f := &fixture{now: time.Unix(1000, 0)}
	f.k = newTestKey(func() time.Time { return f.now })
	f.d = NewDevice(f.k.Switch, Options{Changed: func(c Change) {
		if c.Kind == Inconsistent {
			f.warned = append(f.warned, string(c.Inconsistency))
			return
		}
		f.held = c.Held
	}})
	return f
}

// The steps that a table is written in.
var steps = map[string]func(f *fixture) error{
	"key on":       func(f *fixture) error { f.k.Enable("lio"); return nil },
	"key off":      func(f *fixture) error { return f.k.Disable("lio") },
	"2nd on":       func(f *fixture) error { f.k.Enable("hand"); return nil },
	"2nd off":      func(f *fixture) error { return f.k.Disable("hand") },
	"attach":       func(f *fixture) error { return f.d.Attach("lio") },
	"detach":       func(f *fixture) error { return f.d.Detach("lio") },
	"attach b":     func(f *fixture) error { return f.d.Attach("b") },
	"detach b":     func(f *fixture) error { return f.d.Detach("b") },
	"EIO":          func(f *fixture) error { return asError(f.d.Fault(unix.EIO, "a read", Place{}, false)) },
	"EBUSY":        func(f *fixture) error { return asError(f.d.Fault(unix.EBUSY, "a read", Place{}, false)) },
	"ENOTCONN":     func(f *fixture) error { return asError(f.d.Fault(unix.ENOTCONN, "a read", Place{}, false)) },
	"ECONNABORTED": func(f *fixture) error { return asError(f.d.Fault(unix.ECONNABORTED, "a read", Place{}, false)) },
	"EBADFD":       func(f *fixture) error { return asError(f.d.Fault(unix.EBADFD, "a read", Place{}, false)) },
	"EINVAL":       func(f *fixture) error { return asError(f.d.Fault(unix.EINVAL, "a read", Place{}, false)) },
	"on":           func(f *fixture) error { return f.d.Set() },
	"off":          func(f *fixture) error { f.d.Clear("by hand"); return nil },
	"resume":       func(f *fixture) error { f.d.Resume(); return nil },
	"reopened":     func(f *fixture) error { f.d.Reopened(); return nil },
	"time-out":     func(f *fixture) error { f.d.Expire(f.d.Status().Since); return nil },
	"old clock":    func(f *fixture) error { f.d.Expire(f.now.Add(-time.Second)); return nil },
	"replace":      func(f *fixture) error { f.d.Hold(Replace); return nil },
	"replaced":     func(f *fixture) error { f.d.Release(Replace); return nil },
	"take alias":   func(f *fixture) error { f.d.Hold(Standby); return nil },
}

var errVerdict = [...]error{Pass: errors.New("pass"), Hold: errors.New("hold"), Fail: errors.New("fail")}

func asError(v Verdict) error { return errVerdict[v] }

func TestTransitions(t *testing.T) {
	for _, c := range []struct {
		name   string
		steps  []string
		last   error // of the last step
		value  string
		gate   Verdict
		held   Verdict // what the last change says of held requests
		warned []string
	}{
		{"nothing", nil, nil, "not supported", Pass, Pass, nil},
		{"key alone", []string{"key on"}, nil, "not supported", Pass, Pass, nil},
		{"lease alone", []string{"attach"}, nil, "not supported", Pass, Pass, []string{"enabled-key-off"}},
		{"both", []string{"key on", "attach"}, nil, "off", Pass, Pass, nil},
		{"error without fuses", []string{"EIO"}, errVerdict[Pass], "not supported", Pass, Pass, nil},
		{"error with the key only", []string{"key on", "EIO"}, errVerdict[Pass], "not supported", Pass, Pass, nil},
		{"error with a lease only", []string{"attach", "EIO"}, errVerdict[Pass], "not supported", Pass, Pass, []string{"enabled-key-off"}},
		{"EIO", []string{"key on", "attach", "EIO"}, errVerdict[Hold], "on", Hold, Hold, nil},
		{"EBUSY", []string{"key on", "attach", "EBUSY"}, errVerdict[Hold], "on", Hold, Hold, nil},
		{"ENOTCONN", []string{"key on", "attach", "ENOTCONN"}, errVerdict[Hold], "on", Hold, Hold, nil},
		{"ECONNABORTED", []string{"key on", "attach", "ECONNABORTED"}, errVerdict[Hold], "on", Hold, Hold, nil},
		{"EBADFD", []string{"key on", "attach", "EBADFD"}, errVerdict[Hold], "on", Hold, Hold, nil},
		{"not a trigger", []string{"key on", "attach", "EINVAL"}, errVerdict[Pass], "off", Pass, Pass, nil},
		{"not a trigger, in standby", []string{"key on", "attach", "EIO", "EINVAL"}, errVerdict[Pass], "on", Hold, Hold, nil},
		{"second error", []string{"key on", "attach", "EIO", "EBUSY"}, errVerdict[Hold], "on", Hold, Hold, nil},
		{"resume", []string{"key on", "attach", "EIO", "resume"}, nil, "off", Pass, Pass, nil},
		{"reopened", []string{"key on", "attach", "EIO", "reopened"}, nil, "off", Pass, Pass, nil},
		{"reopened, on by hand", []string{"key on", "attach", "on", "reopened"}, nil, "on", Hold, Hold, nil},
		{"reopened, on by hand after an error", []string{"key on", "attach", "EIO", "on", "reopened"}, nil, "on", Hold, Hold, nil},
		{"resumed, on by hand after an error", []string{"key on", "attach", "EIO", "on", "resume"}, nil, "off", Pass, Pass, nil},
		{"by hand no longer", []string{"key on", "attach", "on", "resume", "EIO", "reopened"}, nil, "off", Pass, Pass, nil},
		{"resume of nothing", []string{"key on", "attach", "resume"}, nil, "off", Pass, Pass, nil},
		{"off by hand", []string{"key on", "attach", "EIO", "off"}, nil, "off", Pass, Fail, nil},
		{"on by hand", []string{"key on", "attach", "on"}, nil, "on", Hold, Hold, nil},
		{"on by hand without fuses", []string{"on"}, ErrNotSupported, "not supported", Pass, Pass, nil},
		{"time-out", []string{"key on", "attach", "EIO", "time-out"}, nil, "on", Fail, Fail, nil},
		{"time-out of an earlier standby", []string{"key on", "attach", "EIO", "old clock"}, nil, "on", Hold, Hold, nil},
		{"error after the time-out", []string{"key on", "attach", "EIO", "time-out", "EIO"}, errVerdict[Fail], "on", Fail, Fail, nil},
		{"resumed after the time-out", []string{"key on", "attach", "EIO", "time-out", "resume"}, nil, "off", Pass, Pass, nil},
		{"standby anew", []string{"key on", "attach", "EIO", "time-out", "resume", "EIO"}, errVerdict[Hold], "on", Hold, Hold, nil},
		{"replace", []string{"key on", "attach", "EIO", "replace"}, nil, "on", Hold, Hold, nil},
		{"replace waits even after the time-out", []string{"key on", "attach", "EIO", "time-out", "replace"}, nil, "on", Hold, Hold, nil},
		{"a failed replace after the time-out", []string{"key on", "attach", "EIO", "time-out", "replace", "replaced"}, nil, "on", Fail, Fail, nil},
		{"a failed replace", []string{"key on", "attach", "EIO", "replace", "replaced"}, nil, "on", Hold, Hold, nil},
		{"a replace", []string{"key on", "attach", "EIO", "replace", "resume", "replaced"}, nil, "off", Pass, Pass, nil},
		{"resumed, not yet replaced", []string{"key on", "attach", "EIO", "replace", "resume"}, nil, "off", Hold, Hold, nil},
		{"replace without fuses", []string{"replace"}, nil, "not supported", Hold, Hold, nil},
		{"off during a replace", []string{"key on", "attach", "EIO", "replace", "off"}, nil, "off", Hold, Fail, nil},
		{"nobody takes standby as a reason", []string{"take alias"}, nil, "not supported", Pass, Pass, nil},
		{"detach in standby", []string{"key on", "attach", "EIO", "detach"}, nil, "not supported", Pass, Pass, []string{"detach-in-standby", "standby-not-enabled"}},
		{"one of two detaches", []string{"key on", "attach", "attach b", "EIO", "detach"}, nil, "on", Hold, Hold, nil},
		{"attach again", []string{"key on", "attach", "EIO", "detach", "attach"}, nil, "on", Hold, Hold, []string{"detach-in-standby", "standby-not-enabled"}},
		{"a left-over flag is cleared", []string{"key on", "attach", "EIO", "detach", "off", "attach"}, nil, "off", Pass, Pass, []string{"detach-in-standby", "standby-not-enabled"}},
		{"clearing a left-over flag fails nothing", []string{"key on", "attach", "EIO", "detach", "off"}, nil, "not supported", Pass, Pass, []string{"detach-in-standby", "standby-not-enabled"}},
		{"key off in standby", []string{"key on", "attach", "EIO", "key off"}, nil, "not supported", Pass, Pass, []string{"enabled-key-off"}},
		{"key on again", []string{"key on", "attach", "EIO", "key off", "key on"}, nil, "on", Hold, Hold, []string{"enabled-key-off"}},
		{"warned once per transition", []string{"attach", "attach b", "key on", "key off"}, nil, "not supported", Pass, Pass, []string{"enabled-key-off", "enabled-key-off"}},
		{"key is counted", []string{"key on", "key on", "attach", "key off"}, nil, "off", Pass, Pass, nil},
		{"key has two holders", []string{"key on", "2nd on", "attach", "key off"}, nil, "off", Pass, Pass, nil},
		{"both holders leave", []string{"key on", "2nd on", "attach", "key off", "2nd off"}, nil, "not supported", Pass, Pass, []string{"enabled-key-off"}},
		{"unbalanced detach", []string{"key on", "attach", "detach b"}, ErrNotAttached, "off", Pass, Pass, []string{"unbalanced-detach"}},
		{"attach twice", []string{"key on", "attach", "attach"}, ErrAttached, "off", Pass, Pass, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture()
			var err error
			for _, s := range c.steps {
				err = steps[s](f)
			}
			if err != c.last {
				t.Errorf("last step: %v, want %v", err, c.last)
			}
			st := f.d.Status()
			if st.Value() != c.value {
				t.Errorf("reads %q, want %q", st.Value(), c.value)
			}
			if v := f.d.Gate().Verdict(); v != c.gate {
				t.Errorf("gate says %v, want %v", v, c.gate)
			}
			if f.d.Gate().Closed() != (c.gate != Pass) {
				t.Errorf("gate closed: %v", f.d.Gate().Closed())
			}
			if f.held != c.held {
				t.Errorf("held requests: %v, want %v", f.held, c.held)
			}
			if !slices.Equal(f.warned, c.warned) {
				t.Errorf("warned of %v, want %v", f.warned, c.warned)
			}
			counted := uint64(0)
			for n := range maps.Values(st.Stats.Inconsistencies) {
				counted += n
			}
			if counted != uint64(len(c.warned)) {
				t.Errorf("counted %d inconsistencies, warned of %d", counted, len(c.warned))
			}
		})
	}
}

func TestTriggerSet(t *testing.T) {
	f := newFixture()
	d := NewDevice(f.k.Switch, Options{Triggers: []unix.Errno{unix.ESTALE}})
	f.k.Enable("lio")
	if err := d.Attach("lio"); err != nil {
		t.Fatal(err)
	}
	if v := d.Fault(unix.EIO, "", Place{}, false); v != Pass {
		t.Errorf("EIO: %v", v)
	}
	if v := d.Fault(unix.ESTALE, "it is gone", Place{}, false); v != Hold {
		t.Errorf("ESTALE: %v", v)
	}
	st := d.Status()
	if st.Errno != unix.ESTALE || st.Cause != "it is gone" || st.ByHand {
		t.Errorf("%+v", st)
	}
	if want := map[unix.Errno]uint64{unix.ESTALE: 1}; !maps.Equal(st.Stats.Triggers, want) {
		t.Errorf("triggers %v", st.Stats.Triggers)
	}
	if v := f.d.Gate().Verdict(); v != Pass {
		t.Errorf("the other device: %v", v)
	}
}

func TestTimes(t *testing.T) {
	f := newFixture()
	f.k.Enable("lio")
	f.d.Attach("lio")
	f.d.Fault(unix.EIO, "x", Place{}, false)
	f.now = f.now.Add(3 * time.Second)
	if got := f.d.Status().Stats.InStandby; got != 3*time.Second {
		t.Errorf("in standby: %v", got)
	}
	f.d.Resume()
	f.now = f.now.Add(time.Hour)
	f.d.Set()
	f.now = f.now.Add(time.Second)
	st := f.d.Status()
	if st.Stats.InStandby != 4*time.Second || st.Stats.Entered != 2 || st.Stats.Resumed != 1 || !st.ByHand {
		t.Errorf("%+v", st)
	}
}

func TestClosedDeviceIsForgotten(t *testing.T) {
	f := newFixture()
	f.d.Attach("lio")
	f.d.Close()
	f.warned = nil
	f.k.Enable("lio")
	f.k.Disable("lio")
	if len(f.warned) != 0 {
		t.Errorf("warned of %v", f.warned)
	}
}

func (v Verdict) String() string { return fmt.Sprint(errVerdict[v]) }
