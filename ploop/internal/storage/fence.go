package storage

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
)

// The fence: what proves that no write of another server is under way to a file that was
// just locked, so that none can land over what is written from now on.
//
// A transfer that is under way holds its open file, and that one its lock and its superblock.
// So a lock that can be had is proof where it was asked of the same superblock as the other
// server's, or of the storage itself, by both. A superblock's device number belongs
// to no other one while it lives: an equal number, in the same boot, means the same superblock or
// that the other server's is wholly gone, and with it all that it had under way.
//
// By another superblock the lock proves nothing, and only the end of the other one does: what lay
// on a block device has given that back (it can be opened exclusively), a FUSE connection
// is in /sys/fs/fuse/connections no more.
//
// The end of a FUSE connection ends what the kernel had under way. A process that served it, and
// had read a write by then, may still carry it out: that is so after an abort, or umount -f. So no
// process may be left that could be the one. What a server across a network has accepted before
// its client was cut off is beyond all that can be seen from here.

// FenceOff says why it isn't known that nothing of an earlier server, which had reached the
// file by before, is under way to a file reached by now; "": nothing is. With locked, the lock
// of a writer is held.
func FenceOff(now, before image.Mount, locked bool) string {
	switch {
	case before.Boot != now.Boot:
		return "" // nothing outlives its kernel
	case before.Disk != 0 || now.Disk != 0:
		// A record of an earlier version knows the node only, which stands for one disk as long as
		// it lasts.
		if locked && (now.Disk == before.Disk || before.Disk == 0) && now.Node == before.Node && now.Super == before.Super {
			return ""
		}
		return "it is a block device, and was served by another device node: a lock is seen by those who use the same node"
	case locked && now.Scope == image.ScopeStorage && before.Scope == image.ScopeStorage:
		return ""
	case now.Super == before.Super && locked:
		if now.ID != 0 && now.ID == before.ID || !IsFUSE(now.Type) {
			return ""
		}
		return fuseServerLeft(before)
	case now.Super == before.Super:
		return "the file system has no locks"
	}
	if now.Scope == image.ScopeHost && unix.Major(now.Super) == 0 && locked && (now.Type == before.Type || before.Type == "") {
		return "" // it has one superblock for each file system, so this is another, or the other is gone
	}
	return mountGone(before, now)
}

// mountGone says why it isn't known that a superblock other than now's is gone; "": it is.
func mountGone(before, now image.Mount) string {
	switch {
	case before.Super == 0:
		return fmt.Sprintf("by which mount it was served is not known, and its locks (%s) are seen by those of the same mount only", MountName(now))
	case before.Type == "" && unix.Major(before.Super) == 0:
		return fmt.Sprintf("it was served by another mount (device number %s), and its locks are seen by those of the same mount only", numberOf(before.Super))
	case IsFUSE(before.Type):
		return fuseGone(before)
	case unix.Major(before.Super) != 0:
		return diskFree(before)
	}
	return fmt.Sprintf("it was served by another mount (%s), whose locks this one (%s) does not see", MountName(before), MountName(now))
}

// MountName says which mount it is, for a message.
func MountName(m image.Mount) string {
	if m.Type == "" {
		return "device number " + numberOf(m.Super)
	}
	return fmt.Sprintf("%s of %q, device number %s", m.Type, m.Source, numberOf(m.Super))
}

func numberOf(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// diskFree asks whether a superblock still has its block device, which it holds exclusively.
func diskFree(m image.Mount) string {
	node := "/dev/block/" + numberOf(m.Super)
	fd, err := unix.Open(node, unix.O_RDONLY|unix.O_EXCL|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		unix.Close(fd)
		return ""
	case unix.ENOENT, unix.ENXIO, unix.ENODEV:
		return "" // the device is gone, and has ended all that it had before it went
	case unix.EBUSY:
		return fmt.Sprintf("it was served by another mount (%s), which still has its disk", MountName(m))
	}
	return fmt.Sprintf("it was served by another mount (%s), and whether that is gone can't be told: %s: %v", MountName(m), node, err)
}

// FuseConnections is the control file system of FUSE: a directory a connection.
var FuseConnections = "/sys/fs/fuse/connections"

// fusectlMagic is FUSE_CTL_SUPER_MAGIC (fs/fuse/control.c).
const fusectlMagic = 0x65735543

func fuseGone(m image.Mount) string {
	another := fmt.Sprintf("it was served by another mount (%s)", MountName(m))
	var st unix.Statfs_t
	if err := unix.Statfs(FuseConnections, &st); err != nil || st.Type != fusectlMagic {
		return another + ", and whether its connection is gone can't be told: mount -t fusectl none " + FuseConnections
	}
	dir := filepath.Join(FuseConnections, strconv.FormatUint(Connection(m), 10))
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Sprintf("%s, whose connection still lives (%s): it ends with the last write that is under way there", another, dir)
	} else if !os.IsNotExist(err) {
		return fmt.Sprintf("%s: %v", another, err)
	}
	return fuseServerLeft(m)
}

// fuseServerLeft names a process that may have served a connection that has ended, and had requests
// in hand then; "": there is none. It is one that has /dev/fuse open and ran when the image
// was opened, unless the kernel says that it serves another connection (since Linux 6.16).
func fuseServerLeft(m image.Mount) string {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err.Error()
	}
	for _, dir := range all {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == os.Getpid() || startOf(dir) > time.Duration(m.Since) {
			continue
		}
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue // it has ended, or is a thread of the kernel's
		}
		for _, fd := range fds {
			if to, err := os.Readlink(dir + "/fd/" + fd.Name()); err != nil || to != "/dev/fuse" {
				continue
			}
			if c, ok := connectionOf(dir + "/fdinfo/" + fd.Name()); ok && c != Connection(m) {
				continue
			}
			name, _ := readKernel(dir + "/comm")
			return fmt.Sprintf("the mount that it was served by (%s) is gone, but process %d (%s) may be the one that served it, with writes in hand", MountName(m), pid, bytes.TrimSpace(name))
		}
	}
	return ""
}

// Connection is the number by which the kernel calls a FUSE connection: its superblock's, in the
// kernel's own encoding (include/linux/kdev_t.h).
func Connection(m image.Mount) uint64 {
	return uint64(unix.Major(m.Super))<<20 | uint64(unix.Minor(m.Super))
}

// connectionOf reads a FUSE device's fdinfo.
func connectionOf(fdinfo string) (uint64, bool) {
	b, err := readKernel(fdinfo)
	if err != nil {
		return 0, false
	}
	_, n, ok := strings.Cut(string(b), "fuse_connection:")
	if !ok {
		return 0, false
	}
	n, _, _ = strings.Cut(n, "\n")
	c, err := strconv.ParseUint(strings.TrimSpace(n), 10, 64)
	return c, err == nil
}

// startOf is when a process began, after the boot.
func startOf(dir string) time.Duration {
	b, err := readKernel(dir + "/stat")
	if err != nil {
		return 0
	}
	// The name, in parentheses, may contain anything; starttime is field 22 (proc(5)), in
	// units of 1/100 s (USER_HZ).
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return 0
	}
	n, _ := strconv.ParseInt(fields[19], 10, 64)
	return time.Duration(n) * time.Second / 100
}
