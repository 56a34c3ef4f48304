package standby

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// What becomes of a request in the model.
const (
	flying = iota // being processed
	held
	served
	failed
)

// model is a device with requests, and what must be true of them, said without the
// machine's own terms: who holds what, and what has happened since.
type model struct {
	t        *rapid.T
	k        *testKey
	d        *Device
	now      time.Time
	holders  map[string]int
	leases   map[string]bool
	flag     bool
	byHand   bool
	expired  bool
	replaces bool
	requests []int
	// gave records the verdict of each change on held requests; applied as the
	// device's owner does.
	inChange bool
}

func (m *model) supported() bool { return len(m.holders) > 0 && len(m.leases) > 0 }

// changed is the owner's part: it releases what it holds as it is told.
func (m *model) changed(c Change) {
	if m.inChange {
		m.t.Fatal("a change within a change")
	}
	m.inChange = true
	defer func() { m.inChange = false }()
	for i, r := range m.requests {
		if r != held {
			continue
		}
		switch c.Held {
		case Pass:
			m.requests[i] = flying
		case Fail:
			m.requests[i] = failed
		}
	}
}

// start is a request at the gate.
func (m *model) start(i int) {
	switch m.d.Gate().Verdict() {
	case Pass:
		m.requests[i] = flying
	case Hold:
		m.requests[i] = held
	case Fail:
		m.requests[i] = failed
	}
}

func (m *model) pick(state int) int {
	var at []int
	for i, r := range m.requests {
		if r == state {
			at = append(at, i)
		}
	}
	if len(at) == 0 {
		return -1
	}
	return rapid.SampledFrom(at).Draw(m.t, "request")
}

// check says what the gate has to be from what was done, and looks at everything.
func (m *model) check() {
	standing := m.flag && m.supported()
	want := Pass
	switch {
	case m.replaces, standing && !m.expired:
		want = Hold
	case standing:
		want = Fail
	}
	if got := m.d.Gate().Verdict(); got != want {
		m.t.Fatalf("gate says %v, want %v", got, want)
	}
	for i, r := range m.requests {
		if r == held && want != Hold {
			m.t.Fatalf("request %d is held, and the gate says %v", i, want)
		}
	}
	st := m.d.Status()
	value := "not supported"
	if m.supported() {
		value = map[bool]string{true: "on", false: "off"}[m.flag]
	}
	if st.Value() != value || st.Flag != m.flag || st.Enabled != (len(m.leases) > 0) || len(st.Consumers) != len(m.leases) {
		m.t.Fatalf("status %+v, want %q", st, value)
	}
}

// TestAnySequence does any sequence of operations, and sees that the promises hold: two
// fuses, no request lost, none released too early, none held with a fuse off.
func TestAnySequence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, now: time.Unix(1, 0), holders: map[string]int{}, leases: map[string]bool{}}
		m.k = newTestKey(func() time.Time { return m.now })
		m.d = NewDevice(m.k.Switch, Options{Changed: m.changed})
		name := rapid.SampledFrom([]string{"a", "b", "c"})
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { m.check() },
			"request": func(*rapid.T) {
				m.requests = append(m.requests, flying)
				m.start(len(m.requests) - 1)
			},
			"good end": func(*rapid.T) {
				if i := m.pick(flying); i >= 0 {
					m.requests[i] = served
				}
			},
			"error": func(t *rapid.T) {
				i := m.pick(flying)
				if i < 0 {
					return
				}
				errno := rapid.SampledFrom([]unix.Errno{unix.EIO, unix.EBUSY, unix.ENOTCONN, unix.EINVAL}).Draw(t, "errno")
				trigger := errno != unix.EINVAL && m.supported()
				was := m.flag
				if trigger && !m.flag {
					m.flag, m.expired = true, false
				}
				switch v := m.d.Fault(errno, "x", Place{}, false); v {
				case Pass:
					if trigger {
						t.Fatal("the user sees an error that should be held")
					}
					m.requests[i] = failed
				case Hold:
					if !trigger {
						t.Fatal("held with a fuse off, or for an error that is no trigger")
					}
					m.start(i)
				case Fail:
					if !was || !m.expired {
						t.Fatal("failed before its time")
					}
					m.requests[i] = failed
				}
			},
			"enable": func(t *rapid.T) { h := name.Draw(t, "holder"); m.holders[h]++; m.k.Enable(h) },
			"disable": func(t *rapid.T) {
				h := name.Draw(t, "holder")
				err := m.k.Disable(h)
				if (err == nil) != (m.holders[h] > 0) {
					t.Fatalf("disable: %v", err)
				}
				if m.holders[h]--; m.holders[h] <= 0 {
					delete(m.holders, h)
				}
			},
			"attach": func(t *rapid.T) { c := name.Draw(t, "consumer"); m.leases[c] = true; m.d.Attach(c) },
			"detach": func(t *rapid.T) { c := name.Draw(t, "consumer"); delete(m.leases, c); m.d.Detach(c) },
			"set": func(t *rapid.T) {
				err := m.d.Set()
				if (err == nil) != m.supported() {
					t.Fatalf("set: %v", err)
				}
				if err == nil && !m.flag {
					m.flag, m.expired = true, false
				}
				m.byHand = m.byHand || err == nil
			},
			"clear": func(t *rapid.T) {
				had := m.pick(held)
				stood := m.flag && m.supported()
				m.flag, m.byHand = false, false
				m.d.Clear("by hand")
				if had >= 0 && stood && m.requests[had] != failed {
					t.Fatal("a hold ended by hand, and its request did not fail")
				}
			},
			"resume": func(t *rapid.T) {
				had := m.pick(held)
				m.flag, m.byHand = false, false
				m.d.Resume()
				if had >= 0 && m.requests[had] == failed {
					t.Fatal("a resume failed a request")
				}
			},
			"reopen": func(t *rapid.T) {
				if ended := m.d.Reopened(); ended != (m.flag && !m.byHand) {
					t.Fatalf("standby %t, by hand %t, and a reopening ended it: %t", m.flag, m.byHand, ended)
				}
				m.flag = m.flag && m.byHand
			},
			"expire": func(*rapid.T) {
				if m.flag {
					m.expired = true
				}
				m.d.Expire(m.d.Status().Since)
			},
			"replace":  func(*rapid.T) { m.replaces = true; m.d.Hold(Replace) },
			"replaced": func(*rapid.T) { m.replaces = false; m.d.Release(Replace) },
			"time":     func(*rapid.T) { m.now = m.now.Add(time.Second) },
		})
		// However it went, a resume with the replacement done lets everything go.
		m.flag, m.replaces = false, false
		m.d.Resume()
		m.d.Release(Replace)
		if m.pick(held) >= 0 {
			t.Fatal("a request is lost")
		}
	})
}
