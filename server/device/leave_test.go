package device

import (
	"testing"
	"time"

	"holdfast/standby"
	"holdfast/ublk"
)

// A call that hangs in its storage, for which the device could not be left, is still under
// way for who comes next: were it taken for none, a replacement would not declare it late,
// and its end in the old file would be acknowledged.
func TestRefusedLeaveForgetsNothing(t *testing.T) {
	d := (&Device{dev: new(ublk.Device), changing: make(chan struct{}, 1)}).assemble()
	d.machine = standby.NewDevice(newTestKey().Switch, standby.Options{})
	call := new(generation)
	d.gen.Store(call)
	if !call.enter() {
		t.Fatal("a call can't begin")
	}
	for range 2 {
		if err := d.Leave(t.Context(), 10*time.Millisecond); err == nil {
			t.Fatal("left with a call under way")
		}
	}
	if n, err := d.epochs.drain(t.Context(), 0); err != nil || n != 1 {
		t.Errorf("%d calls under way (%v), want 1", n, err)
	}
	if err := d.epochs.declareLate(); err != nil {
		t.Fatal(err)
	}
	if v := d.epochs.leave(call, nil, false); v != standby.Hold {
		t.Errorf("a call of files that were replaced: %v, want it begun anew", v)
	}
}
