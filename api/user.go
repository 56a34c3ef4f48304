package api

import (
	"fmt"
	"strconv"
	"strings"
)

// A User is one thing that holds a block device: while it does, taking the
// device away would be a failure for somebody.
type User struct {
	// Kind is "mount", "swap", "holder" (a block device built on this one:
	// device mapper, MD, bcache), "loop", "target" (a LIO backstore) or
	// "process" (a program that has the device open).
	Kind string `json:"kind"`
	// Device is the kernel's name of what is held: the disk ("ublkb0") or one
	// of its partitions ("ublkb0p1").
	Device string `json:"device"`
	// Name says who: the mount point, the holder's name, the backstore, the
	// process' command.
	Name string `json:"name"`
	// PID is the process, for processes and for mounts that only exist in a
	// mount namespace other than ours (then of one process inside it).
	PID int `json:"pid,omitempty"`
}

// String is the user in a few words, for messages: "mounted on /mnt". Names
// come from file systems and processes, so those that could garble a terminal
// are quoted.
func (u User) String() string {
	name := printable(u.Name)
	var s string
	switch u.Kind {
	case "mount":
		s = "mounted on " + name
		if u.PID != 0 {
			s += fmt.Sprintf(" (in the mount namespace of process %d)", u.PID)
		}
	case "swap":
		s = "in use as swap"
	case "holder":
		s = "part of block device " + name
	case "loop":
		s = "behind loop device " + name
	case "target":
		s = "backstore " + name + " of a target"
	case "process":
		s = fmt.Sprintf("open in process %d (%s)", u.PID, name)
	default:
		s = u.Kind + " " + name
	}
	if strings.Contains(strings.TrimPrefix(u.Device, "ublkb"), "p") {
		s += ", by partition " + u.Device
	}
	return s
}

// printable quotes a name if it holds anything that a terminal would act on.
func printable(s string) string {
	for _, r := range s {
		if !strconv.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}
