package story

import (
	"testing"
	"time"

	"holdfast/hack/tool"
)

// How long an initiator waits. The disk's own time-out is first (30 s by
// default), then the command is aborted, which the target can't do while the
// device holds it; after abort_timeout (15 s) the session is dropped and made
// anew, which the target puts off for as long; and after replacement_timeout
// (120 s) the requests fail. Here it is all made short.
func impatient(replacement string) []setting {
	return []setting{
		{"node.session.err_timeo.abort_timeout", "3"},
		{"node.session.timeo.replacement_timeout", replacement},
	}
}

const (
	diskTimeout  = "3"
	longHold     = 25 * time.Second
	patientAfter = "120"
)

// TestHoldOutlastsDiskTimeout: a hold longer than the time-outs of disk and abort
// costs the session, not the data: the initiator logs in again when the hold ends,
// and sends its requests anew.
func TestHoldOutlastsDiskTimeout(t *testing.T) {
	needSoak(t)
	d, sd, j := heldWork(t, "patient", impatient(patientAfter))
	time.Sleep(longHold)
	if j.ended.Load() {
		t.Fatalf("fio did not wait: %+v", j.wait(0))
	}
	d.ok("replace", "patient", "--top", d.dir+"/patient.hds")
	if r := j.wait(10 * time.Minute); r.Error != 0 {
		t.Errorf("fio: %+v", r)
	}
	t.Logf("the initiator's kernel says: %q", sd.kernelErrors(t))
	if s := d.status("patient"); s.Counters.Errors != 0 || s.Standby.HeldFailed != 0 {
		t.Errorf("%+v, %+v", s.Counters, s.Standby)
	}
}

// TestHoldOutlastsSession: a hold that is longer than replacement_timeout too
// fails the initiator's requests, though the device has failed none. When the
// hold ends, the session comes back, and the disk works.
func TestHoldOutlastsSession(t *testing.T) {
	needSoak(t)
	d, sd, j := heldWork(t, "impatient", impatient("3"))
	if r := j.wait(10 * time.Minute); r.Error == 0 {
		t.Errorf("fio saw no error: %+v", r)
	}
	lines := sd.kernelErrors(t)
	if len(lines) == 0 {
		t.Error("the initiator's kernel saw no error")
	}
	t.Logf("the initiator's kernel says: %q", lines)
	if s := d.status("impatient"); s.Standby.Value != "on" || s.Counters.Errors != 0 {
		t.Errorf("the device should hold still: %+v, %+v", s.Counters, s.Standby)
	}

	d.ok("replace", "impatient", "--top", d.dir+"/impatient.hds")
	if err := wait(5*time.Minute, func() error {
		return tool.Run("dd", "if="+sd.Path, "of=/dev/null", "bs=64K", "count=16", "iflag=direct")
	}); err != nil {
		t.Fatalf("the disk does not come back: %v", err)
	}
	sd.kernelErrors(t) // those of the hold
	r := startFio(t, sd.Path, work{Offset: roundSize, Size: roundSize / 4, Rate: 1000, Depth: 16}).wait(10 * time.Minute)
	if r.Error != 0 {
		t.Errorf("fio after the hold: %+v", r)
	}
	noErrors(t, sd)
}

// heldWork has an initiator write to a device, which is then put into standby by
// hand. The storage is a local file: this is about the initiator.
func heldWork(t *testing.T, name string, settings []setting) (*daemon, *initiatorDisk, *job) {
	t.Helper()
	d := startDaemon(t)
	image := d.dir + "/" + name + ".hds"
	d.checkAfter(image)
	disk := d.create(name, image)
	sd := login(t, exportLIO(t, name, disk), settings...)
	set(t, sd.Sys+"/timeout", diskTimeout)
	d.waitStandby(name, "off")
	j := startFio(t, sd.Path, work{Size: roundSize, Rate: 400, Depth: 16})
	d.waitWrites(name, 100, j)
	d.ok("standby", name, "on")
	d.waitHeld(name, 1)
	return d, sd, j
}
