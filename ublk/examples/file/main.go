// Command file serves a file, or a block device, as a block device: what a loop device does.
//
//	truncate -s 1G disk.img
//	go run holdfast/ublk/examples/file -queues 2 disk.img
//
// The file is opened with O_DIRECT, so that nothing is cached twice, and the device has the
// blocks and the alignment that this asks for; -buffered goes through the page cache. Two servers
// of one file would spoil it; nothing here keeps them from that.
//
// Its output is what package holdfast/ublk/examples/internal/server says.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"holdfast/ublk"
	"holdfast/ublk/examples/internal/server"
)

func main() {
	buffered := flag.Bool("buffered", false, "go through the page cache")
	readOnly := flag.Bool("read-only", false, "serve no writes")
	server.Main("FILE", func(cfg *ublk.Config) (server.Target, error) {
		f, err := open(flag.Arg(0), *buffered, *readOnly, cfg)
		return server.Target{Handler: file{f}, File: f}, err
	})
}

// open opens the file, and has cfg say what a device on it is like.
func open(path string, buffered, readOnly bool, cfg *ublk.Config) (*os.File, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	if !buffered {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EINVAL) && !buffered {
		return nil, fmt.Errorf("%w: its file system has no O_DIRECT, try -buffered", err)
	}
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() && fi.Mode().Type() != os.ModeDevice {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s is neither a regular file nor a block device", path))
	}
	if !buffered {
		var st unix.Statx_t
		err = unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
		// A file system that doesn't say is content with sectors of 512 bytes.
		cfg.LogicalBlock, cfg.DMAAlign = max(512, int(st.Dio_offset_align)), max(512, int(st.Dio_mem_align))
	}
	if err == nil {
		cfg.Size, err = f.Seek(0, io.SeekEnd) // a block device's, too
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	cfg.Size -= cfg.Size % int64(max(512, cfg.LogicalBlock))
	cfg.ReadOnly = readOnly
	cfg.VolatileCache, cfg.FUA = true, true // what was written is durable after a flush
	// A question: beyond the end a hole changes nothing.
	if !readOnly && punch(f, cfg.Size, 4096) == 0 {
		cfg.DiscardGranularity = 4096
	}
	return f, nil
}

// file serves what is in the first slot of the table of registered files, which is f as well.
type file struct{ f *os.File }

var _ ublk.Handler = file{}

// Begin is on the queue's thread and must not block. Reads, writes and flushes go on the queue's
// ring; a hole is punched by a goroutine.
func (h file) Begin(r *ublk.Request) {
	switch r.Op() {
	case ublk.OpRead:
		r.ReadFile(0, r.Offset())
	case ublk.OpWrite:
		var flags uint32
		if r.FUA() {
			flags = unix.RWF_DSYNC
		}
		r.WriteFile(0, r.Offset(), flags)
	case ublk.OpFlush:
		r.SyncFile(0)
	case ublk.OpDiscard:
		go func() { r.Complete(punch(h.f, r.Offset(), int64(r.Len()))) }()
	default:
		r.CompleteHere(unix.EOPNOTSUPP)
	}
}

// Transferred is the end of what ReadFile, WriteFile and SyncFile began.
func (file) Transferred(r *ublk.Request, errno unix.Errno) { r.CompleteHere(errno) }

// punch makes a hole in a file.
func punch(f *os.File, off, n int64) unix.Errno {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		var errno unix.Errno
		switch {
		case err == unix.EINTR:
			continue
		case err != nil && !errors.As(err, &errno):
			return unix.EIO
		}
		return errno
	}
}
