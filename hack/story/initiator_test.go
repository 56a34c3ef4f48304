package story

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/hack/tool"
)

// initiatorDisk is what an initiator sees of a target: a disk.
type initiatorDisk struct {
	Path string // /dev/sdX
	Sys  string // its SCSI device in sysfs, with timeout and state
	iqn  string
	log  int // read position in the kernel log: /dev/kmsg
}

// setting is one of open-iscsi's, as in iscsid.conf.
type setting struct{ name, value string }

var iscsidOnce struct {
	sync.Once
	err error
}

// startISCSID brings up open-iscsi's daemon; it stays until the guest ends.
func startISCSID() error {
	if err := tool.Run("modprobe", "-a", "iscsi_tcp", "sd_mod"); err != nil {
		return err
	}
	for _, dir := range []string{"/run/lock/iscsi", "/etc/iscsi"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	name := "/etc/iscsi/initiatorname.iscsi"
	if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(name, []byte("InitiatorName="+iqnPrefix+"initiator\n"), 0o600); err != nil {
			return err
		}
	}
	return tool.Run("iscsid")
}

// login makes a session with a target and waits for its disk. Settings are made
// before. The session ends with the test.
func login(t *testing.T, target *lioTarget, settings ...setting) *initiatorDisk {
	t.Helper()
	iscsidOnce.Do(func() { iscsidOnce.err = startISCSID() })
	must(t, iscsidOnce.err)
	d := &initiatorDisk{iqn: target.IQN}
	var err error
	d.log, err = syscall.Open("/dev/kmsg", syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { syscall.Close(d.log) })
	_, err = syscall.Seek(d.log, 0, 2)
	must(t, err)

	must(t, d.node("-o", "new"))
	t.Cleanup(func() { d.node("-o", "delete") })
	for _, s := range settings {
		must(t, d.node("-o", "update", "-n", s.name, "-v", s.value))
	}
	must(t, d.node("--login"))
	t.Cleanup(func() {
		if err := d.node("--logout"); err != nil {
			t.Error(err)
		}
	})
	if err := wait(time.Minute, d.find); err != nil {
		t.Fatal(err)
	}
	return d
}

// node runs iscsiadm on the target's record.
func (d *initiatorDisk) node(args ...string) error {
	return tool.Run("iscsiadm", append([]string{"-m", "node", "-T", d.iqn, "-p", portal}, args...)...)
}

// find looks for the session's disk.
func (d *initiatorDisk) find() error {
	sessions, _ := filepath.Glob("/sys/class/iscsi_session/*")
	for _, s := range sessions {
		name, err := os.ReadFile(s + "/targetname")
		if err != nil || strings.TrimSpace(string(name)) != d.iqn {
			continue
		}
		disks, _ := filepath.Glob(s + "/device/target*/*:*:*:*/block/sd*")
		if len(disks) != 1 {
			return fmt.Errorf("session %s has %d disks", s, len(disks))
		}
		path := "/dev/" + filepath.Base(disks[0])
		if _, err := os.Stat(path); err != nil {
			return err
		}
		d.Path, d.Sys = path, filepath.Dir(filepath.Dir(disks[0]))
		return nil
	}
	return fmt.Errorf("no session with %s", d.iqn)
}

// kernelErrors returns what the kernel has logged about the disk since the
// login, or since the call before: I/O errors, aborts, resets.
func (d *initiatorDisk) kernelErrors(t *testing.T) []string {
	t.Helper()
	var found []string
	buf := make([]byte, 8192)
	for {
		n, err := syscall.Read(d.log, buf)
		switch {
		case errors.Is(err, syscall.EPIPE): // overwritten before we read it
			continue
		case errors.Is(err, syscall.EAGAIN):
			return found
		case err != nil:
			t.Fatalf("read the kernel's log: %v", err)
		}
		// "level,number,time,flags;text", then lines that begin with a space.
		_, text, _ := strings.Cut(string(buf[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		disk := filepath.Base(d.Path)
		if strings.Contains(text, disk) && (strings.Contains(text, "error") || strings.Contains(text, "FAILED") || strings.Contains(text, "timing out") || strings.Contains(text, "offline")) {
			found = append(found, text)
		}
	}
}
