package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// nodes is where block devices are found.
type nodes struct {
	sys  string // /sys
	stat func(path string, st *unix.Stat_t) error
}

var thisMachine = nodes{"/sys", unix.Stat}

// deviceName is how the manager is to be asked for what a user calls a device: by its name, by
// the kernel's (ublkb0), or by a path that leads to its node, as those below /dev/disk do.
func deviceName(arg string) (string, error) {
	if !strings.Contains(arg, "/") {
		return arg, nil // no device's name has one
	}
	return thisMachine.disk(arg)
}

var diskNode = regexp.MustCompile(`^ublkb[0-9]+$`)

// disk is the kernel's name of the disk that a path leads to. It opens nothing: a device may
// be holding its requests.
func (n nodes) disk(path string) (string, error) {
	var st unix.Stat_t
	switch err := n.stat(path, &st); {
	case errors.Is(err, unix.ENOENT) && filepath.Dir(filepath.Clean(path)) == "/dev" && diskNode.MatchString(filepath.Base(path)):
		return filepath.Base(path), nil // for the manager to know
	case err != nil:
		return "", fmt.Errorf("%q is neither a device's name nor the path of one: %w", path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFBLK:
		return "", usagef("%q is not a block device: give a device's name, or the path of its block device", path)
	}
	dir := filepath.Join(n.sys, "dev/block", fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	to, err := os.Readlink(dir)
	if err != nil {
		return "", fmt.Errorf("%q: the kernel knows no such block device: %w", path, err)
	}
	name, parent := filepath.Base(to), filepath.Base(filepath.Dir(to))
	switch {
	case diskNode.MatchString(name):
		return name, nil
	case diskNode.MatchString(parent):
		return "", usagef("%q is a partition (%s): give the whole disk, /dev/%s", path, name, parent)
	}
	return "", fmt.Errorf("%q is %s, which is no device of holdfast", path, name)
}
