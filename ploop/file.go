package ploop

import (
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// file is what the engine asks of the storage under an image. There are two
// of it: osFile, and the recording and failing ones of the tests. Offsets and
// lengths are in bytes and always multiples of a sector.
type file interface {
	// ReadAt fills p or fails; what lies past the end of the file is
	// io.ErrUnexpectedEOF.
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Sync makes data and size durable (fdatasync).
	Sync() error
	Truncate(size int64) error
	// Allocate makes room behind the end, which reads as zeroes.
	Allocate(off, n int64) error
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

// osFile is a file of the operating system, locked for as long as it is open.
type osFile struct {
	plainFile
	write  bool
	guard  bool        // for reading, and nobody may write meanwhile (locks.go)
	deny   bool        // for reading, and nobody may begin to write
	flags  int         // of the open file, without O_DIRECT
	locked atomic.Bool // the file system carries the lock
	block  bool        // a block device: can't grow or shrink
	dio    dio
	units  clusterLocks // by unit: it is read, changed and written (transfer.go)

	logical int64        // of a block device: its logical block, in bytes; else 1
	hole    atomic.Int64 // see DiscardUnit
	mount   Mount        // by what it was reached

	dev, ino uint64 // which file it is
	rdev     uint64 // and which block device
}

// openFile opens and locks an image (locks.go); guard is for reading. direct asks for
// direct I/O where it is of use (direct.go).
func openFile(path string, write, guard, direct bool) (*osFile, error) {
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
	plain, err := openPlain(path, flags|extra, 0)
	if direct && (err == unix.EINVAL || unsupported(err)) {
		plain, err = openPlain(path, flags, 0)
	}
	if err != nil {
		return nil, openError(path, err)
	}
	f := &osFile{plainFile: plain, write: write, guard: guard && !write, dio: noDirect}
	if err := f.prepare(path, direct); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkKind refuses what can't hold an image.
func (f *osFile) checkKind(path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return &IOError{Op: "stat", File: path, Offset: -1, Err: err}
	}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFBLK {
		return wrongKind(path, st.Mode)
	}
	f.block = st.Mode&unix.S_IFMT == unix.S_IFBLK
	f.dev, f.ino = st.Dev, st.Ino
	if f.block {
		f.rdev = st.Rdev
	}
	return nil
}

func (f *osFile) prepare(path string, direct bool) error {
	err := f.checkKind(path)
	if err != nil {
		return err
	}
	if err := f.Lock(); err != nil {
		return err
	}
	if f.mount, err = mountOf(f.fd); err != nil {
		return &IOError{Op: "stat", File: path, Offset: -1, Err: err}
	}
	fl, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if err != nil {
		return &IOError{Op: "fcntl", File: path, Offset: -1, Err: err}
	}
	f.flags = fl &^ (unix.O_NONBLOCK | unix.O_DIRECT)
	f.findHoles()
	if direct {
		return f.tryDirect()
	}
	return f.setDirect(false)
}

func (f *osFile) Size() (int64, error) {
	// Seeking serves block devices as well, which fstat says are empty.
	return unix.Seek(f.fd, 0, io.SeekEnd)
}

func (f *osFile) Fd() int { return f.fd }

// Close also gives the lock back by name. Closing alone would not do it yet if
// the file is registered with a ring: the kernel takes a ring down in the
// background, and its references go only then. Whoever closes has waited for
// all transfers; it is for the others, the killed, that the lock stays.
func (f *osFile) Close() error {
	if f.Locked() {
		_ = f.Unlock()
	}
	return f.plainFile.Close()
}

// copyChunk bounds the memory of one write of many adjacent sectors, whatever the cluster.
const copyChunk = 1 << 20
