package story

import (
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"holdfast/hack/tool"
)

// TestTgt has the user-space target export a device: it is seen, holds the check on, and
// has a lease for as long as it does.
func TestTgt(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: make soak")
	}
	d := startDaemon(t, "--targets", "tgt")
	disk := d.create("tgt", d.dir+"/tgt.hds")
	if got := d.ok("standby-check", "status"); got != "off" {
		t.Fatalf("no target runs, and the check is %q", got)
	}
	must(t, os.MkdirAll("/run/tgtd", 0o755))
	tgtd := exec.Command("tgtd", "-f")
	must(t, tgtd.Start())
	t.Cleanup(func() {
		tgtd.Process.Kill()
		tgtd.Wait()
	})
	admin := func(args ...string) {
		t.Helper()
		// It may not be listening yet.
		must(t, wait(time.Minute, func() error { return tool.Run("tgtadm", append([]string{"--lld", "iscsi"}, args...)...) }))
	}
	admin("--mode", "target", "--op", "new", "--tid", "1", "-T", iqnPrefix+"tgt")
	admin("--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "-b", disk)
	d.waitStandby("tgt", "off")
	if s := d.status("tgt"); !slices.Equal(s.Standby.Consumers, []string{"tgt"}) {
		t.Errorf("consumers %v", s.Standby.Consumers)
	}
	if got := d.ok("standby-check", "status"); got != "on, held by tgt" {
		t.Errorf("the check is %q", got)
	}
	admin("--mode", "logicalunit", "--op", "delete", "--tid", "1", "--lun", "1")
	d.waitStandby("tgt", "not supported")
	admin("--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "-b", disk)
	d.waitStandby("tgt", "off")
	// Its end is the end of its lease and of its hold on the check.
	tgtd.Process.Kill()
	d.waitStandby("tgt", "not supported")
	if got := d.ok("standby-check", "status"); got != "off" {
		t.Errorf("the check is %q after the target's end", got)
	}
}
