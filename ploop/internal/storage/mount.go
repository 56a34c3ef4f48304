package storage

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/plain"
)

// bootID is another one after every boot.
var bootID = sync.OnceValue(func() string {
	b, _ := readKernel("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

// readKernel reads a file of /proc.
func readKernel(path string) ([]byte, error) {
	f, err := plain.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer f.Close()
	var all []byte
	for b := make([]byte, 32<<10); ; {
		n, err := f.ReadAt(b, int64(len(all)))
		all = append(all, b[:n]...)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return all, nil
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
	}
}

// MountOfOpen says by what an open file was reached. It asks the kernel only, never the storage.
func MountOfOpen(fd int) (image.Mount, error) {
	m := image.Mount{Boot: bootID(), Scope: image.ScopeMount}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return m, fmt.Errorf("clock_gettime: %w", err)
	}
	m.Since = now.Nano()
	// What the storage would have to be asked for is left out.
	var st unix.Statx_t
	const mask = unix.STATX_TYPE | unix.STATX_INO | unix.STATX_MNT_ID_UNIQUE
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, mask, &st); err != nil {
		return m, fmt.Errorf("statx: %w", err)
	}
	if st.Mask&unix.STATX_MNT_ID_UNIQUE != 0 {
		m.ID = st.Mnt_id
	}
	m.Super = unix.Mkdev(st.Dev_major, st.Dev_minor)
	if e, ok := mountEntry(fd); ok {
		m.Super, m.Type, m.Source = e.super, e.fsType, e.source
		m.Scope = scopeOf(e)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		// One lock a special file, wherever the file system of that is.
		m.Node, m.Disk, m.Scope = st.Ino, unix.Mkdev(st.Rdev_major, st.Rdev_minor), image.ScopeHost
	}
	return m, nil
}

// mountInfo is a line of mountinfo(5).
type mountInfo struct {
	super          uint64
	fsType, source string
	options        []string // the mount's and the superblock's
}

// mountEntry finds the mount of an open file in the process's table of mounts.
func mountEntry(fd int) (mountInfo, bool) {
	info, err := readKernel(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return mountInfo{}, false
	}
	_, id, ok := strings.Cut(string(info), "mnt_id:")
	if !ok {
		return mountInfo{}, false
	}
	id, _, _ = strings.Cut(id, "\n")
	table, err := readKernel("/proc/self/mountinfo")
	if err != nil {
		return mountInfo{}, false
	}
	return findMount(string(table), strings.TrimSpace(id))
}

// findMount finds a mount by its ID in a table as mountinfo(5) describes.
func findMount(table, id string) (e mountInfo, ok bool) {
	for line := range strings.Lines(table) {
		// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
		if !strings.HasPrefix(line, id+" ") {
			continue
		}
		mount, super, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		left, right := strings.Fields(mount), strings.SplitN(super, " ", 3)
		if !ok || len(left) < 6 || len(right) < 3 {
			return e, false
		}
		major, minor, _ := strings.Cut(left[2], ":")
		a, err1 := strconv.ParseUint(major, 10, 32)
		b, err2 := strconv.ParseUint(minor, 10, 32)
		if err1 != nil || err2 != nil {
			return e, false
		}
		e = mountInfo{super: unix.Mkdev(uint32(a), uint32(b)), fsType: right[0], source: right[1]}
		e.options = slices.Concat(strings.Split(left[5], ","), strings.Split(right[2], ","))
		return e, true
	}
	return e, false
}

// IsFUSE says whether a type of file system, as mountinfo(5) has it, is served by a process.
func IsFUSE(fsType string) bool {
	return fsType == "fuse" || fsType == "fuseblk" || strings.HasPrefix(fsType, "fuse.")
}

// oneSuperblock are file systems without a block device of their own to be known by, which a
// kernel has one superblock for all the same, however often they are mounted.
var oneSuperblock = []string{
	"tmpfs", "ramfs", "hugetlbfs", "devtmpfs", // memory
	"btrfs", "zfs", "bcachefs", // of several disks each
	"ubifs", // of a volume of flash
}

// scopeOf says who sees locks on the files of a mount. What isn't known is ScopeMount: FUSE in
// general (the kernel keeps the locks unless the server asked for them, which nothing shows), 9p,
// SMB (which passes locks on only when the server takes its lease back), overlayfs (whose locks
// are its own, and not those of the layers).
func scopeOf(e mountInfo) image.Scope {
	has := func(option string) bool { return slices.Contains(e.options, option) }
	switch {
	case e.fsType == "nfs" || e.fsType == "nfs4":
		// nfs(5): locks go to the server unless local_lock or nolock keep them here.
		if has("local_lock=none") && !has("nolock") {
			return image.ScopeStorage
		}
		return image.ScopeMount
	case e.fsType == "ceph", // Documentation/filesystems/ceph.rst: the metadata server has them
		e.fsType == "fuse.glusterfs",         // features/locks, a translator of the bricks
		e.fsType == "lustre" && has("flock"): // mount.lustre(8): flock is coherent, localflock isn't
		return image.ScopeStorage
	case slices.Contains(oneSuperblock, e.fsType):
		return image.ScopeHost
	case unix.Major(e.super) != 0 && !IsFUSE(e.fsType):
		// It lies on a block device, of which the kernel makes one superblock (get_tree_bdev).
		return image.ScopeHost
	}
	return image.ScopeMount
}

// MountOf says by what a path leads to its file. It doesn't ask the file's storage for more than
// its name.
func MountOf(path string) (image.Mount, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return image.Mount{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return MountOfOpen(fd)
}
