package fusefs

import (
	"context"
	"hash/fnv"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/sysfs"
)

// node is a path that the kernel knows. What is there is looked up for each
// operation: entries come and go.
type node struct {
	fs.Inode
	tree *tree
	path string // "block/v1", "" for the root
}

var (
	_ fs.NodeLookuper   = (*node)(nil)
	_ fs.NodeReaddirer  = (*node)(nil)
	_ fs.NodeGetattrer  = (*node)(nil)
	_ fs.NodeSetattrer  = (*node)(nil)
	_ fs.NodeReadlinker = (*node)(nil)
	_ fs.NodeOpener     = (*node)(nil)
	_ fs.NodeStatfser   = (*node)(nil)
	_ fs.NodeCreater    = (*node)(nil)
	_ fs.NodeMkdirer    = (*node)(nil)
	_ fs.NodeMknoder    = (*node)(nil)
	_ fs.NodeSymlinker  = (*node)(nil)
	_ fs.NodeLinker     = (*node)(nil)
	_ fs.NodeUnlinker   = (*node)(nil)
	_ fs.NodeRmdirer    = (*node)(nil)
	_ fs.NodeRenamer    = (*node)(nil)
)

// entry is what is at the node's path now, nil if that is gone. Links are not
// followed: the kernel does that.
func (n *node) entry() sysfs.Entry {
	var at sysfs.Entry = n.tree.root
	if n.path == "" {
		return at
	}
	for name := range strings.SplitSeq(n.path, "/") {
		dir, ok := at.(*sysfs.Dir)
		if !ok {
			return nil
		}
		at = dir.Entry(name)
	}
	return at
}

func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	dir, ok := n.entry().(*sysfs.Dir)
	if !ok {
		return nil, syscall.ENOENT
	}
	e := dir.Entry(name)
	if e == nil {
		return nil, syscall.ENOENT
	}
	child := &node{tree: n.tree, path: strings.TrimPrefix(n.path+"/"+name, "/")}
	n.tree.fill(e.Info(), &out.Attr)
	// The same path is the same inode, for as long as it is of the same type.
	return n.NewInode(ctx, child, fs.StableAttr{Mode: out.Attr.Mode & unix.S_IFMT, Ino: ino(child.path)}), 0
}

func (n *node) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	dir, ok := n.entry().(*sysfs.Dir)
	if !ok {
		return nil, syscall.ENOENT
	}
	all := dir.All()
	list := make([]fuse.DirEntry, len(all))
	for i, e := range all {
		info := e.Info()
		list[i] = fuse.DirEntry{Name: info.Name, Mode: info.Mode, Ino: ino(strings.TrimPrefix(n.path+"/"+info.Name, "/"))}
	}
	return fs.NewListDirStream(list), 0
}

func (n *node) Getattr(_ context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	var e sysfs.Entry
	if h, ok := f.(*handle); ok {
		e = h.attr // open: its name may have vanished
	} else if e = n.entry(); e == nil {
		return syscall.ENOENT
	}
	n.tree.fill(e.Info(), &out.Attr)
	return 0
}

// Setattr lets truncate and touch do nothing, as O_TRUNC asks for the first.
func (n *node) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		return syscall.EPERM
	}
	if in.Valid&fuse.FATTR_SIZE != 0 {
		if a, ok := n.entry().(*sysfs.Attr); ok && !a.Writable() {
			return syscall.EACCES
		}
	}
	return n.Getattr(ctx, f, out)
}

func (n *node) Readlink(context.Context) ([]byte, syscall.Errno) {
	l, ok := n.entry().(*sysfs.Link)
	if !ok {
		return nil, syscall.ENOENT
	}
	return []byte(l.Target), 0
}

// Statfs answers df, and tells how long names can be.
func (n *node) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	out.Bsize, out.Frsize, out.NameLen = 4096, 4096, 255
	return 0
}

// The rest says what the kernel's sysfs says to whoever wants to make or
// remove something.

func (n *node) Create(context.Context, string, uint32, uint32, *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, syscall.EACCES
}

func (n *node) Mkdir(context.Context, string, uint32, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

func (n *node) Mknod(context.Context, string, uint32, uint32, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

func (n *node) Symlink(context.Context, string, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

func (n *node) Link(context.Context, fs.InodeEmbedder, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

func (n *node) Unlink(context.Context, string) syscall.Errno { return syscall.EPERM }

func (n *node) Rmdir(context.Context, string) syscall.Errno { return syscall.EPERM }

func (n *node) Rename(context.Context, string, fs.InodeEmbedder, string, uint32) syscall.Errno {
	return syscall.EPERM
}

func (t *tree) fill(info sysfs.Info, out *fuse.Attr) {
	out.Mode = info.Mode
	out.Nlink = 1 // of a directory: its subdirectories aren't counted
	out.Blksize = 4096
	switch info.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		out.Size = sysfs.MaxValue
	case unix.S_IFLNK:
		out.Size = uint64(len(info.Target))
	}
	out.SetTimes(&t.made, &t.made, &t.made)
}

// ino makes an inode number of a path.
func ino(path string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(path))
	return h.Sum64()>>2 + 2 // not 0, 1 or all ones, which have a meaning
}
