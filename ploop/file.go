package ploop

import (
	"fmt"
	"io"
	"sync/atomic"
	"unsafe"

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
	direct bool        // opened with O_DIRECT
	locked atomic.Bool // the file system carries the lock
	block  bool        // a block device: can't grow or shrink

	dev, ino uint64 // which file it is
}

// openFile opens and locks an image (locks.go); guard is for reading.
//
// Direct I/O is used where the file system takes it in units of a sector,
// which a probing read finds out, since no query tells it for all of them.
func openFile(path string, write, guard, direct bool) (*osFile, error) {
	// O_NONBLOCK: a FIFO by that name must not hang us; it does nothing to files.
	flags := unix.O_RDONLY | unix.O_NONBLOCK
	if write {
		flags = unix.O_RDWR | unix.O_NONBLOCK
	}
	plain, err := openPlain(path, flags, 0)
	if err != nil {
		return nil, &IOError{Op: "open", File: path, Offset: -1, Err: err}
	}
	f := &osFile{plainFile: plain, write: write, guard: guard && !write}
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
		return &FormatError{File: path, Offset: -1, What: "file", Found: "neither a regular file nor a block device", Class: ErrNotPloop}
	}
	f.block = st.Mode&unix.S_IFMT == unix.S_IFBLK
	f.dev, f.ino = st.Dev, st.Ino
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
	fl, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if err != nil {
		return &IOError{Op: "fcntl", File: path, Offset: -1, Err: err}
	}
	fl &^= unix.O_NONBLOCK
	if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, fl); err != nil {
		return &IOError{Op: "fcntl", File: path, Offset: -1, Err: err}
	}
	if direct {
		return f.tryDirect(path, fl)
	}
	return nil
}

// tryDirect turns O_DIRECT on and off again if a read of one sector into
// memory aligned to one sector doesn't work. A file too short to tell is
// served through the page cache. Storage that fails says nothing about it.
func (f *osFile) tryDirect(path string, fl int) error {
	if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, fl|unix.O_DIRECT); err != nil {
		return nil
	}
	buf := AlignedBuffer(2 * SectorSize)
	n, err := unix.Pread(f.fd, buf[SectorSize:], SectorSize)
	if err == nil && n == SectorSize {
		f.direct = true
		return nil
	}
	if err != nil && err != unix.EINVAL && !unsupported(err) {
		return &IOError{Op: "read", File: path, Offset: SectorSize, Err: err}
	}
	if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, fl); err != nil {
		return &IOError{Op: "fcntl", File: path, Offset: -1, Err: err}
	}
	return nil
}

// bufferAlign satisfies direct I/O on every device that takes single sectors.
const bufferAlign = 4096

// AlignedBuffer returns n bytes at an address that direct I/O takes.
func AlignedBuffer(n int) []byte {
	b := make([]byte, n+bufferAlign)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (bufferAlign - 1)
	return b[skip : skip+n : skip+n]
}

func aligned(p []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%SectorSize == 0
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	if f.direct && !aligned(p) {
		b := AlignedBuffer(len(p))
		n, err := f.ReadAt(b, off)
		copy(p, b[:n])
		return n, err
	}
	for done := 0; done < len(p); {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		case n == 0:
			return done, io.ErrUnexpectedEOF
		default:
			done += n
			if f.direct && done%SectorSize != 0 && done < len(p) {
				// Only the end of the file cuts a sector, and direct I/O
				// can't be asked for what follows it.
				return done, io.ErrUnexpectedEOF
			}
		}
	}
	return len(p), nil
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	if f.direct && !aligned(p) {
		b := AlignedBuffer(len(p))
		copy(b, p)
		p = b
	}
	return f.plainFile.WriteAt(p, off)
}

func (f *osFile) Allocate(off, n int64) error {
	err := retry(func() error { return unix.Fallocate(f.fd, 0, off, n) })
	if unsupported(err) {
		return f.Truncate(off + n)
	}
	return err
}

func (f *osFile) Zero(off, n int64, keep bool) error {
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if keep {
		mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	}
	err := retry(func() error { return unix.Fallocate(f.fd, mode, off, n) })
	if unsupported(err) {
		return writeZeroes(f, off, n)
	}
	return err
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

func unsupported(err error) bool {
	return err == unix.EOPNOTSUPP || err == unix.ENOSYS
}

// writeZeroes is for storage that has no operation for it.
func writeZeroes(f file, off, n int64) error {
	b := AlignedBuffer(int(min(n, copyChunk)))
	for n > 0 {
		k := min(n, int64(len(b)))
		if _, err := f.WriteAt(b[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// copyChunk bounds the memory of one COW or zeroing, whatever the cluster.
const copyChunk = 1 << 20

// ImageRef names one file of a stack and how to read it.
type ImageRef struct {
	Path string `json:"path"`
	// Raw is said, never guessed: the content of a raw image belongs to the
	// disk's user, who could make it look like a ploop image.
	Raw bool `json:"raw,omitempty"`
}

// ParseImageRef takes FILE or raw@FILE, the notation of dm-ploop's table.
func ParseImageRef(s string) (ImageRef, error) {
	r := ImageRef{Path: s}
	if len(s) >= 4 && s[:4] == "raw@" {
		r = ImageRef{Path: s[4:], Raw: true}
	}
	if r.Path == "" {
		return r, fmt.Errorf("image %q: no file name", s)
	}
	return r, nil
}

func (r ImageRef) String() string {
	if r.Raw {
		return "raw@" + r.Path
	}
	return r.Path
}
