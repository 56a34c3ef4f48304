package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeviceName: a device is found by any path that leads to its disk, and nothing else is
// taken for one.
func TestDeviceName(t *testing.T) {
	sys := t.TempDir()
	for number, to := range map[string]string{"259:0": "block/ublkb0", "259:1": "block/ublkb0/ublkb0p1", "259:12": "block/ublkb12", "253:0": "block/dm-0"} {
		link := filepath.Join(sys, "dev/block", number)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("../../devices/virtual", to), link); err != nil {
			t.Fatal(err)
		}
	}
	n := nodes{sys, func(path string, st *unix.Stat_t) error {
		node, ok := map[string]unix.Stat_t{ // as stat(2) finds them, behind all links
			"/dev/ublkb0":                {Mode: unix.S_IFBLK, Rdev: unix.Mkdev(259, 0)},
			"/dev/disk/by-uuid/1-2":      {Mode: unix.S_IFBLK, Rdev: unix.Mkdev(259, 0)},
			"./copy-of-a-node":           {Mode: unix.S_IFBLK, Rdev: unix.Mkdev(259, 12)},
			"/dev/holdfast/vm1-part1":    {Mode: unix.S_IFBLK, Rdev: unix.Mkdev(259, 1)},
			"/dev/mapper/vg":             {Mode: unix.S_IFBLK, Rdev: unix.Mkdev(253, 0)},
			"/srv/was-a-disk":            {Mode: unix.S_IFBLK, Rdev: unix.Mkdev(8, 0)},
			"/dev/ublkc0":                {Mode: unix.S_IFCHR, Rdev: unix.Mkdev(240, 0)},
			"/srv/images/vm1.hds":        {Mode: unix.S_IFREG},
			"/run/holdfast/sys/block/v1": {Mode: unix.S_IFDIR},
		}[path]
		if !ok {
			return unix.ENOENT
		}
		*st = node
		return nil
	}}
	for path, want := range map[string]string{
		"/dev/ublkb0": "ublkb0", "/dev/disk/by-uuid/1-2": "ublkb0", "./copy-of-a-node": "ublkb12",
		"/dev/ublkb7": "ublkb7", "/dev//ublkb7": "ublkb7", // gone, and the manager may know it
	} {
		if got, err := n.disk(path); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
	for path, want := range map[string]string{
		"/dev/holdfast/vm1-part1":    "is a partition (ublkb0p1): give the whole disk, /dev/ublkb0",
		"/dev/mapper/vg":             "is dm-0, which is no device of holdfast",
		"/srv/was-a-disk":            "the kernel knows no such block device",
		"/dev/ublkc0":                "is not a block device",
		"/srv/images/vm1.hds":        "is not a block device",
		"/run/holdfast/sys/block/v1": "is not a block device",
		"/dev/nix":                   "neither a device's name nor the path of one",
		"./ublkb0":                   "neither a device's name nor the path of one",
		"/dev/ublkb0p9":              "neither a device's name nor the path of one",
	} {
		if got, err := n.disk(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v, want an error with %q", path, got, err, want)
		}
	}
	if got, err := deviceName("a.b-c"); got != "a.b-c" || err != nil {
		t.Errorf("a name: %q, %v", got, err)
	}
}
