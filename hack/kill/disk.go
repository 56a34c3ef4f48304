package kill

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Disk is what a model works on: a block device, or a test's own.
type Disk interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// WriteDurable is a write with FUA.
	WriteDurable(p []byte, off int64) (int, error)
	Flush() error
	Zero(off, n int64) error
	Discard(off, n int64) error
}

// BlockDevice is a Disk of the kernel's, past the page cache.
type BlockDevice struct{ fd, durable int }

var _ Disk = (*BlockDevice)(nil)

// OpenBlockDevice opens one.
func OpenBlockDevice(path string) (*BlockDevice, error) {
	const flags = unix.O_RDWR | unix.O_DIRECT | unix.O_CLOEXEC
	fd, err := unix.Open(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	durable, err := unix.Open(path, flags|unix.O_DSYNC, 0)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &BlockDevice{fd, durable}, nil
}

func (b *BlockDevice) Close() { unix.Close(b.fd); unix.Close(b.durable) }

func (b *BlockDevice) ReadAt(p []byte, off int64) (int, error) { return unix.Pread(b.fd, p, off) }

func (b *BlockDevice) WriteAt(p []byte, off int64) (int, error) { return unix.Pwrite(b.fd, p, off) }

func (b *BlockDevice) WriteDurable(p []byte, off int64) (int, error) {
	return unix.Pwrite(b.durable, p, off)
}

func (b *BlockDevice) Flush() error { return unix.Fsync(b.fd) }

func (b *BlockDevice) Zero(off, n int64) error { return b.rangeCommand(blkZeroOut, off, n) }

func (b *BlockDevice) Discard(off, n int64) error { return b.rangeCommand(unix.BLKDISCARD, off, n) }

// blkZeroOut is BLKZEROOUT of linux/fs.h, _IO(0x12, 127).
const blkZeroOut = 0x12<<8 | 127

func (b *BlockDevice) rangeCommand(command uintptr, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(b.fd), command, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}

// aligned is a buffer for direct I/O.
func aligned(size int) []byte {
	b := make([]byte, size+4096)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & 4095
	return b[skip:][:size]
}
