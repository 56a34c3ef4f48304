package stack

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices and mounts take root")
	}
}

func mustRun(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// blockDevice makes a block device of so many bytes, with logical blocks of block.
func blockDevice(t testing.TB, size int64, block int) string {
	t.Helper()
	needRoot(t)
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip(err)
	}
	back := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(back, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(back, size); err != nil {
		t.Fatal(err)
	}
	dev := mustRun(t, "losetup", "--find", "--show", "--sector-size", fmt.Sprint(block), back)
	t.Cleanup(func() { exec.Command("losetup", "-d", dev).Run() })
	return dev
}

// mountAt makes a file system on a device and mounts it.
func mountAt(t testing.TB, dev, options string, mkfs ...string) string {
	t.Helper()
	mustRun(t, mkfs[0], append(mkfs[1:], dev)...)
	dir := t.TempDir()
	mustRun(t, "mount", "-o", options, dev, dir)
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}
