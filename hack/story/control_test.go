package story

import (
	"testing"
	"time"
)

// TestControl: with the standby check off, the same story ends with I/O errors
// at the initiator.
func TestControl(t *testing.T) {
	needVM(t)
	g := needGluster(t)
	d := startDaemon(t)
	disk := d.create("control", g.mounts[0]+"/control.hds")
	sd := login(t, exportLIO(t, "control", disk))
	j := startFio(t, sd.Path, work{Size: 32 << 20, Rate: 400, Depth: 16})
	time.Sleep(2 * time.Second)
	if j.ended.Load() {
		t.Fatal("fio ended before anything happened")
	}
	g.kill(t)
	r := j.wait(5 * time.Minute)
	if r.Error == 0 {
		t.Errorf("fio saw no error of storage that was taken away: %+v", r)
	}
	if lines := sd.kernelErrors(t); len(lines) == 0 {
		t.Error("the initiator's kernel saw no error")
	} else {
		t.Logf("%d errors in the initiator's kernel log, the first: %s", len(lines), lines[0])
	}
	if s := d.status("control"); s.Counters.Errors == 0 {
		t.Errorf("the device counts no error: %+v", s.Counters)
	}
	g.revive(t, g.mounts[0])
}
