package story

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/hack/tool"
)

const (
	configfs  = "/sys/kernel/config/target"
	portal    = "127.0.0.1:3260"
	iqnPrefix = "iqn.2026-11.test.holdfast:"
)

// needLIO loads the kernel's target. Plain configfs is all that it takes:
// targetcli would want D-Bus.
func needLIO(t *testing.T) {
	t.Helper()
	needVM(t)
	must(t, tool.Run("modprobe", "-a", "target_core_mod", "target_core_iblock", "iscsi_target_mod"))
	if _, err := os.Stat(configfs); err != nil {
		t.Fatalf("%v: is configfs mounted on /sys/kernel/config?", err)
	}
	if err := os.Mkdir(configfs+"/iscsi", 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
}

// lioTarget is an iSCSI target with one LUN, 0, on one block device. Anybody
// may log in at portal and write.
type lioTarget struct {
	IQN       string
	Backstore string // directory under configfs
	tpg       string
}

// exportLIO makes a target of a block device. The name, of letters and digits,
// is the backstore's and the end of the IQN. It is taken down with the test.
func exportLIO(t *testing.T, name, disk string) *lioTarget {
	t.Helper()
	needLIO(t)
	l := &lioTarget{IQN: iqnPrefix + name, Backstore: configfs + "/core/iblock_0/" + name}
	l.tpg = configfs + "/iscsi/" + l.IQN + "/tpgt_1"
	t.Cleanup(func() { l.remove(t) })

	must(t, os.MkdirAll(l.Backstore, 0o755))
	set(t, l.Backstore+"/control", "udev_path="+disk)
	set(t, l.Backstore+"/enable", "1")
	// The identity that initiators see; else two backstores have the same.
	set(t, l.Backstore+"/wwn/vpd_unit_serial", name)

	must(t, os.MkdirAll(l.tpg+"/lun/lun_0", 0o755))
	must(t, os.Symlink(l.Backstore, l.tpg+"/lun/lun_0/"+name))
	must(t, os.Mkdir(l.tpg+"/np/"+portal, 0o755))
	for _, attr := range []struct{ name, value string }{
		{"authentication", "0"}, {"generate_node_acls", "1"}, {"cache_dynamic_acls", "1"}, {"demo_mode_write_protect", "0"},
	} {
		set(t, l.tpg+"/attrib/"+attr.name, attr.value)
	}
	set(t, l.tpg+"/enable", "1")
	return l
}

// remove takes a target down, as far as it was built up. The order is configfs'
// own: what links must go before what is linked to.
func (l *lioTarget) remove(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(l.tpg); err == nil {
		os.WriteFile(l.tpg+"/enable", []byte("0"), 0)
	}
	links, _ := filepath.Glob(l.tpg + "/lun/lun_0/*")
	for _, link := range links {
		if fi, err := os.Lstat(link); err == nil && fi.Mode()&os.ModeSymlink != 0 {
			remove(t, link)
		}
	}
	remove(t, l.tpg+"/np/"+portal)
	remove(t, l.tpg+"/lun/lun_0")
	remove(t, l.tpg)
	remove(t, filepath.Dir(l.tpg))
	remove(t, l.Backstore)
}

// remove removes one entry of configfs, if it is there.
func remove(t *testing.T, path string) {
	t.Helper()
	err := syscall.Rmdir(path)
	if errors.Is(err, syscall.ENOTDIR) {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remove %s: %v", path, err)
	}
}

// set writes an attribute of configfs or sysfs.
func set(t *testing.T, path, value string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		t.Fatalf("write %q: %v", value, err)
	}
}

// TestTargetWithoutHoldfast: a target on the kernel's own loop device works as
// the story needs it. When this fails, look for the cause elsewhere than in
// holdfast.
func TestTargetWithoutHoldfast(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: make soak")
	}
	needLIO(t)
	must(t, tool.Run("modprobe", "loop"))
	file := t.TempDir() + "/disk"
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, 32<<20))
	disk := loop(t, file)
	target := exportLIO(t, "plain", disk)
	d := login(t, target)
	want := bytes.Repeat([]byte("holdfast"), 512)
	f, err := os.OpenFile(d.Path, os.O_RDWR|os.O_SYNC, 0)
	must(t, err)
	defer f.Close()
	if _, err := f.WriteAt(want, 8<<20); err != nil {
		t.Fatal(err)
	}
	if size, err := f.Seek(0, 2); err != nil || size != 32<<20 {
		t.Errorf("the initiator's disk has %d bytes, %v", size, err)
	}
	got, err := os.ReadFile(disk)
	if err != nil || len(got) != 32<<20 || !bytes.Equal(got[8<<20:][:len(want)], want) {
		t.Errorf("the target's disk does not have what the initiator wrote; %d bytes, %v", len(got), err)
	}
	if lines := d.kernelErrors(t); len(lines) != 0 {
		t.Errorf("%q", lines)
	}
}

// loop makes a loop device of a file.
func loop(t *testing.T, file string) string {
	t.Helper()
	out, err := output("losetup", "--find", "--show", file)
	must(t, err)
	disk := strings.TrimSpace(out)
	t.Cleanup(func() {
		// The backstore before it lets go of the disk in the background.
		if err := wait(time.Minute, func() error { return tool.Run("losetup", "--detach", disk) }); err != nil {
			t.Error(err)
		}
	})
	if disk == "" {
		t.Fatal(fmt.Errorf("losetup named no device"))
	}
	return disk
}
