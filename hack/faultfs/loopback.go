package faultfs

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// node is a file or directory of the mount. What it doesn't say, LoopbackNode
// does.
type node struct {
	fs.LoopbackNode
	faults  *faults
	options *Options
}

var (
	_ fs.NodeWrapChilder    = (*node)(nil)
	_ fs.NodeLookuper       = (*node)(nil)
	_ fs.NodeGetattrer      = (*node)(nil)
	_ fs.NodeSetattrer      = (*node)(nil)
	_ fs.NodeOpener         = (*node)(nil)
	_ fs.NodeCreater        = (*node)(nil)
	_ fs.NodeTmpfiler       = (*node)(nil)
	_ fs.NodeLinker         = (*node)(nil)
	_ fs.NodeMkdirer        = (*node)(nil)
	_ fs.NodeRenamer        = (*node)(nil)
	_ fs.NodeUnlinker       = (*node)(nil)
	_ fs.NodeRmdirer        = (*node)(nil)
	_ fs.NodeStatfser       = (*node)(nil)
	_ fs.NodeOpendirHandler = (*node)(nil)
)

func newRoot(backing string, f *faults, o *Options) (fs.InodeEmbedder, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(backing, &st); err != nil {
		return nil, err
	}
	root := &fs.LoopbackRoot{Path: backing, Dev: st.Dev}
	if o.Renumber {
		root.Dev = rand.Uint64() // it is part of every number
	}
	top := &node{fs.LoopbackNode{RootData: root}, f, o}
	root.RootNode = top
	return top, nil
}

// WrapChild makes one of us of what LoopbackNode makes.
func (n *node) WrapChild(context.Context, fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{fs.LoopbackNode{RootData: n.RootData}, n.faults, n.options}
}

func (n *node) path() string { return n.Path(n.Root()) }

// plain is an operation without a length.
func (n *node) plain(op Op, path string, perform func() syscall.Errno) syscall.Errno {
	_, errno := n.faults.do(call{op: op, path: path}, func(int64) (int64, unix.Errno) { return 0, perform() })
	return errno
}

func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (child *fs.Inode, errno syscall.Errno) {
	errno = n.plain(Lookup, filepath.Join(n.path(), name), func() syscall.Errno {
		child, errno = n.LoopbackNode.Lookup(ctx, name, out)
		return errno
	})
	return child, errno
}

func (n *node) Getattr(ctx context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	return n.plain(Getattr, n.path(), func() syscall.Errno {
		if f, ok := f.(*file); ok { // the name may be gone
			return f.LoopbackFile.Getattr(ctx, out)
		}
		return n.LoopbackNode.Getattr(ctx, nil, out)
	})
}

func (n *node) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	perform := func() syscall.Errno {
		if f, ok := f.(*file); ok {
			return f.LoopbackFile.Setattr(ctx, in, out)
		}
		return n.LoopbackNode.Setattr(ctx, nil, in, out)
	}
	if size, ok := in.GetSize(); ok {
		_, errno := n.faults.do(call{Truncate, n.path(), int64(size), 1 << 62}, func(int64) (int64, unix.Errno) { return 0, perform() })
		return errno
	}
	return n.plain(Setattr, n.path(), perform)
}

// openFlags keep the page cache out, unless Options leave that to the opener.
func (n *node) openFlags() uint32 {
	if n.options.OneWriter {
		return 0
	}
	return fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
}

// behind are the flags to open a file behind with: the page cache spares the
// alignment of buffers.
func behind(flags uint32) uint32 { return flags &^ unix.O_DIRECT }

func (n *node) Open(ctx context.Context, flags uint32) (fh fs.FileHandle, _ uint32, errno syscall.Errno) {
	errno = n.plain(Open, n.path(), func() syscall.Errno {
		fh, _, errno = n.LoopbackNode.Open(ctx, behind(flags))
		return errno
	})
	return n.wrap(fh), n.openFlags(), errno
}

func (n *node) Create(ctx context.Context, name string, flags uint32, mode uint32, out *fuse.EntryOut) (child *fs.Inode, fh fs.FileHandle, _ uint32, errno syscall.Errno) {
	errno = n.plain(Create, filepath.Join(n.path(), name), func() syscall.Errno {
		child, fh, _, errno = n.LoopbackNode.Create(ctx, name, behind(flags), mode, out)
		return errno
	})
	if errno != 0 {
		return nil, nil, 0, errno
	}
	return child, child.Operations().(*node).wrap(fh), n.openFlags(), 0
}

func (n *node) Tmpfile(ctx context.Context, flags uint32, mode uint32, out *fuse.EntryOut) (child *fs.Inode, fh fs.FileHandle, _ uint32, errno syscall.Errno) {
	errno = n.plain(Create, n.path(), func() syscall.Errno {
		child, fh, _, errno = n.LoopbackNode.Tmpfile(ctx, behind(flags), mode, out)
		return errno
	})
	if errno != 0 {
		return nil, nil, 0, errno
	}
	return child, child.Operations().(*node).wrap(fh), n.openFlags(), 0
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (child *fs.Inode, errno syscall.Errno) {
	errno = n.plain(Create, filepath.Join(n.path(), name), func() syscall.Errno {
		child, errno = n.LoopbackNode.Link(ctx, target, name, out)
		return errno
	})
	return child, errno
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (child *fs.Inode, errno syscall.Errno) {
	errno = n.plain(Create, filepath.Join(n.path(), name), func() syscall.Errno {
		child, errno = n.LoopbackNode.Mkdir(ctx, name, mode, out)
		return errno
	})
	return child, errno
}

func (n *node) Rename(ctx context.Context, name string, newParent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	return n.plain(Create, filepath.Join(newParent.(*node).path(), newName), func() syscall.Errno {
		return n.LoopbackNode.Rename(ctx, name, newParent, newName, flags)
	})
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.plain(Unlink, filepath.Join(n.path(), name), func() syscall.Errno { return n.LoopbackNode.Unlink(ctx, name) })
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	return n.plain(Unlink, filepath.Join(n.path(), name), func() syscall.Errno { return n.LoopbackNode.Rmdir(ctx, name) })
}

func (n *node) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	return n.plain(Statfs, n.path(), func() syscall.Errno { return n.LoopbackNode.Statfs(ctx, out) })
}

func (n *node) OpendirHandle(ctx context.Context, flags uint32) (fh fs.FileHandle, _ uint32, errno syscall.Errno) {
	errno = n.plain(Readdir, n.path(), func() syscall.Errno {
		fh, _, errno = n.LoopbackNode.OpendirHandle(ctx, flags)
		return errno
	})
	return fh, 0, errno
}

func (n *node) wrap(fh fs.FileHandle) fs.FileHandle {
	if fh == nil {
		return nil
	}
	return &file{fh.(*fs.LoopbackFile), n}
}

// file is an open file.
type file struct {
	*fs.LoopbackFile
	n *node
}

var (
	_ fs.FileReader    = (*file)(nil)
	_ fs.FileWriter    = (*file)(nil)
	_ fs.FileFsyncer   = (*file)(nil)
	_ fs.FileFlusher   = (*file)(nil)
	_ fs.FileAllocater = (*file)(nil)
	_ fs.FileLseeker   = (*file)(nil)
	_ fs.FileGetlker   = (*file)(nil)
	_ fs.FileSetlker   = (*file)(nil)
	_ fs.FileSetlkwer  = (*file)(nil)
)

// fd is valid until Release, which the kernel sends last.
func (f *file) fd() int {
	fd, _ := f.LoopbackFile.PassthroughFd()
	return fd
}

// PassthroughFd keeps the kernel from going around us.
func (f *file) PassthroughFd() (int, bool) { return -1, false }

func (f *file) Read(_ context.Context, buf []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, errno := f.n.faults.do(call{Read, f.n.path(), off, int64(len(buf))}, func(limit int64) (int64, unix.Errno) {
		n, err := unix.Pread(f.fd(), buf[:limit], off)
		return int64(n), fs.ToErrno(err)
	})
	if errno != 0 {
		return nil, errno
	}
	return fuse.ReadResultData(buf[:n]), 0
}

func (f *file) Write(_ context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	n, errno := f.n.faults.do(call{Write, f.n.path(), off, int64(len(data))}, func(limit int64) (int64, unix.Errno) {
		n, err := unix.Pwrite(f.fd(), data[:limit], off)
		return int64(n), fs.ToErrno(err)
	})
	if errno != 0 {
		return 0, errno
	}
	return uint32(n), 0
}

// Writev is LoopbackFile's; the library prefers Write where it can, but must
// not get around the rules where it can't.
func (f *file) Writev(ctx context.Context, data [][]byte, off int64) (uint32, syscall.Errno) {
	var all []byte
	for _, d := range data {
		all = append(all, d...)
	}
	return f.Write(ctx, all, off)
}

func (f *file) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	return f.n.plain(Fsync, f.n.path(), func() syscall.Errno { return f.LoopbackFile.Fsync(ctx, flags) })
}

func (f *file) Flush(ctx context.Context) syscall.Errno {
	return f.n.plain(Flush, f.n.path(), func() syscall.Errno { return f.LoopbackFile.Flush(ctx) })
}

func (f *file) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	_, errno := f.n.faults.do(call{Fallocate, f.n.path(), int64(off), int64(size)}, func(int64) (int64, unix.Errno) {
		return 0, fs.ToErrno(unix.Fallocate(f.fd(), mode, int64(off), int64(size)))
	})
	return errno
}

func (f *file) Lseek(ctx context.Context, off uint64, whence uint32) (at uint64, errno syscall.Errno) {
	errno = f.n.plain(Seek, f.n.path(), func() syscall.Errno {
		at, errno = f.LoopbackFile.Lseek(ctx, off, whence)
		return errno
	})
	return at, errno
}

func (f *file) Getlk(ctx context.Context, owner uint64, lk *fuse.FileLock, flags uint32, out *fuse.FileLock) syscall.Errno {
	return f.n.plain(Lock, f.n.path(), func() syscall.Errno { return f.LoopbackFile.Getlk(ctx, owner, lk, flags, out) })
}

func (f *file) Setlk(ctx context.Context, owner uint64, lk *fuse.FileLock, flags uint32) syscall.Errno {
	return f.n.plain(Lock, f.n.path(), func() syscall.Errno { return f.LoopbackFile.Setlk(ctx, owner, lk, flags) })
}

func (f *file) Setlkw(ctx context.Context, owner uint64, lk *fuse.FileLock, flags uint32) syscall.Errno {
	return f.n.plain(Lock, f.n.path(), func() syscall.Errno { return f.LoopbackFile.Setlkw(ctx, owner, lk, flags) })
}
