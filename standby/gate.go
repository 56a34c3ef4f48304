package standby

import "sync/atomic"

// Reason is why a gate is closed. A gate is closed for a set of them, and who
// opens it takes away its own only.
type Reason uint32

const (
	// Standby: the flag is set, and both fuses are on.
	Standby Reason = 1 << iota
	// Replace: files below the device are being replaced.
	Replace
	// Leave: the device is being left to another server.
	Leave

	// failing goes with Standby: its time is up.
	failing Reason = 1 << 31
)

var reasonNames = []struct {
	r    Reason
	name string
}{{Standby, "standby"}, {Replace, "replace"}, {Leave, "leave"}}

// Names lists the reasons of a set; none for an open gate.
func (r Reason) Names() []string {
	names := []string{}
	for _, n := range reasonNames {
		if r&n.r != 0 {
			names = append(names, n.name)
		}
	}
	return names
}

// Verdict is what becomes of a request.
type Verdict uint8

const (
	// Pass: it is processed; at its end, its result stands.
	Pass Verdict = iota
	// Hold: it is kept, and processed anew when the gate has opened.
	Hold
	// Fail: it ends with EIO.
	Fail
)

// Gate is a device's gate. The zero Gate is open.
type Gate struct {
	word atomic.Uint32
}

// Closed is what every request asks at its start: one load.
func (g *Gate) Closed() bool { return g.word.Load() != 0 }

// Reasons are why it is closed, 0 if it is open.
func (g *Gate) Reasons() Reason { return Reason(g.word.Load()) &^ failing }

// Verdict says what becomes of a request that starts now. A device whose standby
// has timed out fails requests, but not while its files are being replaced.
func (g *Gate) Verdict() Verdict {
	switch w := Reason(g.word.Load()); {
	case w == 0:
		return Pass
	case w&failing != 0 && w&^(failing|Standby) == 0:
		return Fail
	}
	return Hold
}
