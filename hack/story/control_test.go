package story

import (
	"testing"
	"time"
)

// TestControl: with the standby check off, as no target is watched, the same
// story ends with I/O errors at the initiator.
func TestControl(t *testing.T) {
	needVM(t)
	g := needGluster(t)
	d := startDaemon(t, "--targets", "none")
	disk := d.create("control", g.mounts[0]+"/control.hds")
	sd := login(t, exportLIO(t, "control", disk))
	j := startFio(t, sd.Path, work{Size: roundSize, Rate: 400, Depth: 16})
	if got, err := d.attribute("control", "queue/standby"); err != nil || got != "not supported" {
		t.Fatalf("standby reads %q, %v", got, err)
	}
	d.waitWrites("control", 100, j)
	g.kill(t)
	r := j.wait(10 * time.Minute)
	if r.Error == 0 {
		t.Errorf("fio saw no error of storage that was taken away: %+v", r)
	}
	if lines := sd.kernelErrors(t); len(lines) == 0 {
		t.Error("the initiator's kernel saw no error")
	} else {
		t.Logf("%d errors in the initiator's kernel log, the first: %s", len(lines), lines[0])
	}
	if s := d.status("control"); s.Counters.Errors == 0 || s.Standby.HeldTotal != 0 {
		t.Errorf("the device should have failed requests and held none: %+v, %+v", s.Counters, s.Standby)
	}
	g.revive(t, g.mounts[0])
}
