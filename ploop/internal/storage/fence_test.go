package storage

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
)

func TestScopes(t *testing.T) {
	const line = "36 35 %s /x /mnt\\040y rw,noatime shared:1 master:2 - %s %s %s"
	for _, c := range []struct {
		dev, fsType, source, options string
		want                         image.Scope
	}{
		{"8:1", "ext4", "/dev/sda1", "rw", image.ScopeHost},
		{"259:3", "xfs", "/dev/nvme0n1p3", "rw,attr2", image.ScopeHost},
		{"8:1", "vfat", "/dev/sda1", "rw", image.ScopeHost},
		{"253:7", "ocfs2", "/dev/dm-7", "rw", image.ScopeHost},
		{"0:30", "btrfs", "/dev/sda1", "rw,subvolid=5", image.ScopeHost},
		{"0:30", "tmpfs", "tmpfs", "rw", image.ScopeHost},
		{"0:30", "zfs", "pool/data", "rw", image.ScopeHost},
		{"8:1", "fuseblk", "/dev/sda1", "rw,user_id=0", image.ScopeMount},
		{"0:50", "fuse", "x", "rw", image.ScopeMount},
		{"0:50", "fuse.sshfs", "host:", "rw", image.ScopeMount},
		{"0:50", "fuse.glusterfs", "host:vol", "rw", image.ScopeStorage},
		{"0:50", "virtiofs", "tag", "rw", image.ScopeMount},
		{"0:50", "9p", "tag", "rw,trans=virtio", image.ScopeMount},
		{"0:50", "cifs", "//h/s", "rw,vers=3.1.1", image.ScopeMount},
		{"0:50", "overlay", "overlay", "rw,lowerdir=/a", image.ScopeMount},
		{"0:50", "nfs", "h:/x", "rw,vers=3,local_lock=none,addr=1.2.3.4", image.ScopeStorage},
		{"0:50", "nfs4", "h:/x", "rw,vers=4.2,local_lock=none", image.ScopeStorage},
		{"0:50", "nfs", "h:/x", "rw,vers=3,nolock,local_lock=all", image.ScopeMount},
		{"0:50", "nfs", "h:/x", "rw,vers=3,local_lock=posix", image.ScopeMount},
		{"0:50", "nfs", "h:/x", "rw", image.ScopeMount},
		{"0:50", "ceph", "h:/", "rw", image.ScopeStorage},
		{"0:50", "lustre", "h:/l", "rw,flock", image.ScopeStorage},
		{"0:50", "lustre", "h:/l", "rw,localflock", image.ScopeMount},
		{"0:50", "whatever", "x", "rw", image.ScopeMount},
	} {
		e, ok := findMount("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"+fmt.Sprintf(line, c.dev, c.fsType, c.source, c.options)+"\n360 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "36")
		if got := scopeOf(e); !ok || e.fsType != c.fsType || e.source != c.source || got != c.want {
			t.Errorf("%+v: %v, %+v, scope %s", c, ok, e, got)
		}
	}
}

// TestFenceOff goes through what a lock and two mounts say.
func TestFenceOff(t *testing.T) {
	fuse := image.Mount{Boot: "1", Super: 50, ID: 7, Type: "fuse.x", Scope: image.ScopeMount}
	with := func(m image.Mount, change func(*image.Mount)) image.Mount { change(&m); return m }
	nfs := image.Mount{Boot: "1", Super: 60, ID: 8, Type: "nfs4", Scope: image.ScopeStorage}
	smb := image.Mount{Boot: "1", Super: 70, ID: 9, Type: "cifs", Scope: image.ScopeMount}
	memory := image.Mount{Boot: "1", Super: 80, ID: 9, Type: "tmpfs", Scope: image.ScopeHost}
	disk := image.Mount{Boot: "1", Super: unix.Mkdev(4095, 1<<19), ID: 10, Type: "ext4", Scope: image.ScopeHost} // there is no such device
	node := image.Mount{Boot: "1", Super: 6, ID: 11, Type: "devtmpfs", Scope: image.ScopeHost, Node: 5, Disk: 9}
	for i, c := range []struct {
		before, now image.Mount
		locked, off bool // off: it isn't known that nothing is under way
	}{
		{fuse, fuse, true, false},
		{fuse, fuse, false, true},
		{with(fuse, func(m *image.Mount) { m.Boot = "0" }), with(fuse, func(m *image.Mount) { m.Super = 9 }), false, false},
		{nfs, with(nfs, func(m *image.Mount) { m.Super, m.ID = 61, 12 }), true, false},
		{nfs, with(nfs, func(m *image.Mount) { m.Super, m.ID = 61, 12 }), false, true},
		{with(nfs, func(m *image.Mount) { m.Scope = image.ScopeMount }), with(nfs, func(m *image.Mount) { m.Super = 61 }), true, true},
		{nfs, with(nfs, func(m *image.Mount) { m.Super, m.Scope = 61, image.ScopeMount }), true, true},
		{smb, with(smb, func(m *image.Mount) { m.Super = 71 }), true, true},
		{smb, with(smb, func(m *image.Mount) { m.ID = 0 }), true, false}, // the same superblock, or it is gone
		{memory, with(memory, func(m *image.Mount) { m.Super = 81 }), true, false},
		{disk, with(disk, func(m *image.Mount) { m.Super++ }), true, false}, // the old disk is gone
		{node, node, true, false},
		{node, node, false, true},
		{node, with(node, func(m *image.Mount) { m.Node = 6 }), true, true},
		{node, with(node, func(m *image.Mount) { m.Disk = 10 }), true, true},
	} {
		if why := FenceOff(c.now, c.before, c.locked); (why != "") != c.off {
			t.Errorf("case %d: %q", i, why)
		}
	}
}

// TestFenceOfOldRecord: a record of an earlier version knows of a block device its node only.
func TestFenceOfOldRecord(t *testing.T) {
	now := image.Mount{Boot: "b", Super: 5, Node: 77, Disk: unix.Mkdev(8, 16), Scope: image.ScopeHost}
	old := image.Mount{Boot: "b", Super: 5, Node: 77}
	if why := FenceOff(now, old, true); why != "" {
		t.Errorf("the same node: %s", why)
	}
	if FenceOff(now, old, false) == "" {
		t.Error("without the lock it is taken")
	}
	old.Node = 78
	if FenceOff(now, old, true) == "" {
		t.Error("another node is taken")
	}
}
