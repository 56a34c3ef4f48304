package device

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/standby"
)

// TestCutOffIsSeen asks about a file that nobody writes to and that was cut off: it is told
// once, and meets the standby as an error of the storage.
func TestCutOffIsSeen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "img")
	if err := ploop.Create(path, ploop.CreateOptions{Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	s, err := stack.Open([]ploop.ImageRef{{Path: path}}, stack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	key := newTestKey()
	key.Enable("a test")
	events := make(chan api.Event, 10)
	d := (&Device{event: func(e api.Event) { events <- e }}).assemble()
	d.machine = standby.NewDevice(key.Switch, standby.Options{})
	defer d.machine.Close()
	if err := d.machine.Attach("a test"); err != nil {
		t.Fatal(err)
	}
	g := newGeneration(s, 1)
	ask := func() {
		d.link.askEnd(g)
		for range 1000 { // until it has come back, or never will
			if !g.asking.Load() {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	ask()
	if g.asking.Load() || len(events) > 0 || d.machine.Status().Flag {
		t.Fatalf("a whole file: asking %v, %d events, %+v", g.asking.Load(), len(events), d.machine.Status())
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	d.link.askEnd(g)
	e := <-events
	if e.Kind != api.EventTruncated || !strings.Contains(e.Message, path) {
		t.Errorf("told %+v", e)
	}
	if st := d.machine.Status(); !st.Flag || !strings.Contains(st.Cause, "cut off") {
		t.Errorf("not in standby: %+v", st)
	}
	d.link.askEnd(g)
	if !g.asking.Load() || len(events) > 0 {
		t.Error("it is told again")
	}
}
