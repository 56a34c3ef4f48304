package kill

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"holdfast/hack/tool"
)

const (
	configfs = "/sys/kernel/config/target"
	naa      = "naa.60014050000000" // and two digits
)

// TestInitiator: a LIO target lies between the device and its user, who sees the
// target's disk, and nothing of the kills.
func TestInitiator(t *testing.T) {
	needSoak(t)
	kills := count(t, "HOLDFAST_VARIANT_KILLS", 2)
	s := newServer(t, "--targets", "lio")
	g := threeDeltas(t, t.TempDir(), 64<<20, 21)
	disk := s.ok(append([]string{"create", "lun"}, g.arguments()...)...)
	requeued, failed := countRequests(t, "block_rq_requeue", disk), countRequests(t, "block_rq_error", disk)
	sd := loopback(t, "lun", disk, 1)
	w := startLoad(t, sd, g, 12, false)
	recovered := 0
	for range kills {
		w.advances(100)
		s.kill()
		s.restart("lun")
		recovered += s.recoveries("lun")
	}
	w.advances(50)
	t.Logf("%d kills, %d recoveries, %d requests reissued, %d failed; %v", kills, recovered, requeued.hits(), failed.hits(), w)
	if recovered != kills || failed.hits() != 0 {
		t.Errorf("%d kills, %d recoveries, %d failed requests", kills, recovered, failed.hits())
	}
	if d, err := s.client.Device(t.Context(), "lun"); err != nil || !d.Standby.Enabled {
		t.Errorf("the target's lease is gone: %+v, %v", d, err)
	}
	w.stop()
	w.check()
	removeLoopback(t, "lun", 1)
	s.ok("remove", "lun")
	g.sound(t, s)
}

// loopback exports a block device to this machine itself, and gives the SCSI disk that
// it becomes. Removed with the test at the latest.
func loopback(t *testing.T, name, disk string, number int) string {
	t.Helper()
	must(t, tool.Run("modprobe", "-a", "target_core_mod", "target_core_iblock", "tcm_loop", "sd_mod"))
	store := configfs + "/core/iblock_0/" + name
	tpg := fmt.Sprintf("%s/loopback/%s%02d/tpgt_1", configfs, naa, number)
	t.Cleanup(func() { removeLoopback(t, name, number) })
	must(t, os.MkdirAll(store, 0o755))
	set(t, store+"/control", "udev_path="+disk)
	set(t, store+"/enable", "1")
	set(t, store+"/wwn/vpd_unit_serial", name)
	if err := os.Mkdir(configfs+"/loopback", 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	must(t, os.MkdirAll(tpg, 0o755))
	set(t, tpg+"/nexus", fmt.Sprintf("%s%02d", naa, number+50))
	must(t, os.MkdirAll(tpg+"/lun/lun_0", 0o755))
	before, _ := filepath.Glob("/sys/block/sd*")
	must(t, os.Symlink(store, tpg+"/lun/lun_0/"+name))
	old := map[string]bool{}
	for _, b := range before {
		old[b] = true
	}
	var found string
	must(t, wait(time.Minute, func() error {
		now, _ := filepath.Glob("/sys/block/sd*")
		for _, b := range now {
			if !old[b] {
				found = "/dev/" + filepath.Base(b)
				f, err := os.Open(found) // it may not be ready yet
				if err == nil {
					f.Close()
				}
				return err
			}
		}
		return errors.New("no SCSI disk appears")
	}))
	return found
}

// removeLoopback takes it down, as far as it is there.
func removeLoopback(t *testing.T, name string, number int) {
	t.Helper()
	tpg := fmt.Sprintf("%s/loopback/%s%02d/tpgt_1", configfs, naa, number)
	for _, path := range []string{tpg + "/lun/lun_0/" + name, tpg + "/lun/lun_0", tpg, filepath.Dir(tpg), configfs + "/core/iblock_0/" + name} {
		err := syscall.Rmdir(path)
		if errors.Is(err, syscall.ENOTDIR) {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("remove %s: %v", path, err)
		}
	}
}

// set writes an attribute of configfs, sysfs or cgroups.
func set(t *testing.T, path, value string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		t.Fatalf("write %q: %v", value, err)
	}
}
