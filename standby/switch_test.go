package standby

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTurnedElsewhere: a word that another process turns is obeyed by the next operation, also
// before anybody was woken, and a wake-up brings the gate in line.
func TestTurnedElsewhere(t *testing.T) {
	k := newTestKey(time.Now)
	k.word.Store(1) // before there is any device
	var changes []Kind
	d := NewDevice(k.Switch, Options{Changed: func(c Change) { changes = append(changes, c.Kind) }})
	d.Attach("lio")
	if v := d.Fault(unix.EIO, "x", Place{}, false); v != Hold {
		t.Fatalf("an error with the check on: %v", v)
	}
	if want := []Kind{Attached, Entered}; !slices.Equal(changes, want) {
		t.Errorf("changes %v, want %v", changes, want)
	}

	k.word.Store(0)
	if v := d.Fault(unix.EIO, "x", Place{}, false); v != Pass || d.Gate().Closed() {
		t.Errorf("an error with the check off: %v, gate closed: %v", v, d.Gate().Closed())
	}
	k.word.Store(1)
	if v := d.Fault(unix.EIO, "x", Place{}, false); v != Hold || !d.Gate().Closed() {
		t.Errorf("an error of a device with the mark, with the check on again: %v, gate closed: %v", v, d.Gate().Closed())
	}

	k.word.Store(0)
	if !d.Gate().Closed() {
		t.Error("the gate is not the process' own")
	}
	changes = nil
	k.Turned()
	k.Turned()
	if want := []Kind{FuseChanged, Inconsistent}; d.Gate().Closed() || !slices.Equal(changes, want) {
		t.Errorf("after the wake-up: gate closed: %v, changes %v, want %v", d.Gate().Closed(), changes, want)
	}
}
