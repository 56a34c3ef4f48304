package fusefs

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/sysfs"
)

// handle is an open attribute.
type handle struct {
	tree *tree
	path string
	attr *sysfs.Attr

	busy chan struct{} // holds one token: who has it out may touch text
	text []byte        // what reads go on in; nil: none yet
}

var (
	_ fs.FileReader  = (*handle)(nil)
	_ fs.FileWriter  = (*handle)(nil)
	_ fs.FileFsyncer = (*handle)(nil)
)

// Open checks what the mount's own check of modes leaves out: root.
func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	a, ok := n.entry().(*sysfs.Attr)
	if !ok {
		return nil, 0, syscall.ENOENT
	}
	mode := flags & unix.O_ACCMODE
	if mode != unix.O_WRONLY && !a.Readable() || mode != unix.O_RDONLY && !a.Writable() {
		return nil, 0, syscall.EACCES
	}
	h := &handle{tree: n.tree, path: n.path, attr: a, busy: make(chan struct{}, 1)}
	h.busy <- struct{}{}
	// Without the second flag one write that hangs would stop the next in the
	// kernel, where it can't even be killed.
	return h, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, 0
}

func (h *handle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	select {
	case <-h.busy:
	case <-ctx.Done():
		return nil, syscall.EINTR
	case <-h.tree.closing:
		return nil, syscall.EINTR
	}
	defer func() { h.busy <- struct{}{} }()
	if off == 0 || h.text == nil {
		text, err := h.tree.call(ctx, h.path, h.attr.Text)
		if err != nil {
			h.text = nil
			return nil, sysfs.Errno(err, false)
		}
		h.text = []byte(text)
	}
	if off >= int64(len(h.text)) {
		return fuse.ReadResultData(nil), 0
	}
	rest := h.text[off:]
	return fuse.ReadResultData(rest[:min(len(rest), len(dest))]), 0
}

func (h *handle) Write(ctx context.Context, data []byte, _ int64) (uint32, syscall.Errno) {
	text := string(data) // data is only lent
	_, err := h.tree.call(ctx, h.path, func() (string, error) { return "", h.attr.Put(text) })
	if err != nil {
		return 0, sysfs.Errno(err, true)
	}
	return uint32(len(data)), 0
}

func (h *handle) Fsync(context.Context, uint32) syscall.Errno { return 0 }
