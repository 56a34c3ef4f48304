// Package storage is the file under an image: how it is opened, locked and transferred to, past the
// page cache where that can be, what its mount tells of its locks, and which mount's writes they
// keep away.
package storage

import (
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/lock"
	"holdfast/ploop/internal/plain"
)

// File is what the engine asks of the storage under an image. There are two
// of it: OSFile, and the recording and failing ones of the tests. Offsets and
// lengths are in bytes and always multiples of a sector.
type File interface {
	// ReadAt fills p or fails; what lies past the end of the file is
	// io.ErrUnexpectedEOF.
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Sync makes data and size durable (fdatasync).
	Sync() error
	Truncate(size int64) error
	// Allocate makes room behind the end, which reads as zeroes. With lasting it does so, once the next
	// Sync has succeeded, also where data that was written there since isn't durable.
	Allocate(off, n int64) (lasting bool, err error)
	// Zero makes a range inside the file read as zeroes; with keep the space
	// stays allocated, without it goes back to the file system if it can.
	Zero(off, n int64, keep bool) error
	// Discard says that a range inside the file isn't wanted any more, which costs
	// nothing: what of it goes back to the storage reads as anything, and the rest as it did.
	Discard(off, n int64) error
	// DiscardUnit is the size of the blocks that can go back, in bytes; 0: none can.
	DiscardUnit() int64
	Size() (int64, error)
	// Locked says whether the open file holds its lock; a file system
	// without locks gives none. Unlock gives it back, and Lock takes it again.
	Locked() bool
	Unlock() error
	Lock() error
	// Fd is the descriptor for transfers past this interface, -1: none.
	Fd() int
	Close() error
}

var _ File = (*OSFile)(nil)

// OSFile is a file of the operating system, locked for as long as it is open.
type OSFile struct {
	plain.File
	Write  bool
	Guard  bool        // for reading, and nobody may write meanwhile (locks.go)
	deny   bool        // for reading, and nobody may begin to write
	flags  int         // of the open file, without O_DIRECT
	locked atomic.Bool // the file system carries the lock
	Block  bool        // a block device: can't grow or shrink
	Direct Direct
	units  lock.ByNumber // by unit: it is read, changed and written (transfer.go)

	logical int64        // of a block device: its logical block, in bytes; else 1
	hole    atomic.Int64 // see DiscardUnit
	Mount   image.Mount  // by what it was reached

	Dev, Ino uint64 // which file it is
	Rdev     uint64 // and which block device
}

// OpenFile opens and locks an image (locks.go); guard is for reading. direct asks for
// direct I/O where it is of use (direct.go).
func OpenFile(path string, write, guard, direct bool) (*OSFile, error) {
	// O_NONBLOCK: a FIFO by that name must not hang us; it does nothing to files.
	flags := unix.O_RDONLY | unix.O_NONBLOCK
	if write {
		flags = unix.O_RDWR | unix.O_NONBLOCK
	}
	// From the beginning: CIFS and 9p decide at open(2) how they transfer.
	extra := 0
	if direct {
		extra = unix.O_DIRECT
	}
	opened, err := plain.Open(path, flags|extra, 0)
	if direct && (err == unix.EINVAL || plain.Unsupported(err)) {
		opened, err = plain.Open(path, flags, 0)
	}
	if err != nil {
		return nil, openError(path, err)
	}
	f := &OSFile{File: opened, Write: write, Guard: guard && !write, Direct: noDirect}
	if err := f.prepare(path, direct); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkKind refuses what can't hold an image.
func (f *OSFile) checkKind(path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(f.FD, &st); err != nil {
		return &image.IOError{Op: "stat", File: path, Offset: -1, Err: err}
	}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFBLK {
		return wrongKind(path, st.Mode)
	}
	f.Block = st.Mode&unix.S_IFMT == unix.S_IFBLK
	f.Dev, f.Ino = st.Dev, st.Ino
	if f.Block {
		f.Rdev = st.Rdev
	}
	return nil
}

func (f *OSFile) prepare(path string, direct bool) error {
	err := f.checkKind(path)
	if err != nil {
		return err
	}
	if err := f.Lock(); err != nil {
		return err
	}
	if f.Mount, err = MountOfOpen(f.FD); err != nil {
		return &image.IOError{Op: "stat", File: path, Offset: -1, Err: err}
	}
	fl, err := unix.FcntlInt(uintptr(f.FD), unix.F_GETFL, 0)
	if err != nil {
		return &image.IOError{Op: "fcntl", File: path, Offset: -1, Err: err}
	}
	f.flags = fl &^ (unix.O_NONBLOCK | unix.O_DIRECT)
	f.findHoles()
	if direct {
		return f.tryDirect()
	}
	return f.SetDirect(false)
}

// Size is in bytes. To seek would take the lock on the file's position, and with FUSE the inode's, in the
// way of who writes; but fstat says that block devices are empty.
func (f *OSFile) Size() (int64, error) {
	if f.Block {
		return unix.Seek(f.FD, 0, io.SeekEnd)
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.FD, &st); err != nil {
		return 0, err
	}
	return st.Size, nil
}

// Fd is the descriptor.
func (f *OSFile) Fd() int { return f.FD }

// Close also gives the lock back by name. Closing alone would not do it yet if
// the file is registered with a ring: the kernel takes a ring down in the
// background, and its references go only then. Whoever closes has waited for
// all transfers; it is for the others, the killed, that the lock stays.
func (f *OSFile) Close() error {
	if f.Locked() {
		_ = f.Unlock()
	}
	return f.File.Close()
}

// CopyChunk bounds the memory of one write of many adjacent sectors, whatever the cluster.
const CopyChunk = 1 << 20
