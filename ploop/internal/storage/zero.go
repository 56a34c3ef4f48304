package storage

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/plain"
)

// Allocate makes room behind the end. Blocks that fallocate reserves read as zeroes until data has come
// to them (unwritten extents). Of a hole nothing says that: a file system may give it blocks, with
// what they had before, and then be cut off before the data.
func (f *OSFile) Allocate(off, n int64) (lasting bool, err error) {
	err = f.fallocate(0, off, n)
	if plain.Unsupported(err) {
		return false, f.Truncate(off + n)
	}
	return err == nil, err
}

// Zero makes a range inside the file read as zeroes, whatever it takes.
func (f *OSFile) Zero(off, n int64, keep bool) error {
	// Block devices take whole logical blocks only; files any range.
	end := off + n
	lo, hi := (off+f.logical-1)&^(f.logical-1), end&^(f.logical-1)
	if lo >= hi {
		return writeZeroes(f, off, n)
	}
	if err := f.zeroBlocks(lo, hi-lo, keep); err != nil {
		return err
	}
	if err := writeZeroes(f, off, lo-off); err != nil {
		return err
	}
	return writeZeroes(f, hi, end-hi)
}

func (f *OSFile) zeroBlocks(off, n int64, keep bool) error {
	const punch, zero = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	first, second := uint32(punch), uint32(zero)
	if keep {
		first, second = second, first
	}
	err := f.fallocate(first, off, n)
	if !unable(err) {
		return err
	}
	err = f.fallocate(second, off, n)
	if err == nil && keep && !f.Block {
		_ = f.fallocate(unix.FALLOC_FL_KEEP_SIZE, off, n) // was only asked for
	}
	if unable(err) {
		return writeZeroes(f, off, n)
	}
	return err
}

// unable says that the storage lacks an operation, or the kind of it that was asked for.
func unable(err error) bool { return plain.Unsupported(err) || err == unix.EINVAL }

func (f *OSFile) fallocate(mode uint32, off, n int64) error {
	return plain.Retry(func() error { return unix.Fallocate(f.FD, mode, off, n) })
}

// zeroChunk is how much one write zeroes, in bytes.
const zeroChunk = 256 << 10

// someZeroes are written by any number of threads at once, and changed by none.
var someZeroes = sync.OnceValue(func() []byte { return AlignedBuffer(zeroChunk) })

// writeZeroes is for storage that has no operation for it.
func writeZeroes(f File, off, n int64) error {
	for n > 0 {
		k := min(n, zeroChunk-off%BufferAlign) // the rest in whole blocks
		if _, err := f.WriteAt(someZeroes()[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Discard gives the whole blocks of a range back to the storage, if that can take them.
func (f *OSFile) Discard(off, n int64) error {
	u := f.hole.Load()
	if u == 0 {
		return nil
	}
	lo, hi := (off+u-1)/u*u, (off+n)/u*u
	if lo >= hi {
		return nil
	}
	var err error
	if f.Block {
		err = plain.Retry(func() error { return blkDiscard(f.FD, lo, hi-lo) })
	} else {
		err = f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, lo, hi-lo)
	}
	if unable(err) {
		f.hole.Store(0)
		return nil
	}
	return err
}

// DiscardUnit is the size of the blocks that Discard gives back, in bytes; 0: none.
func (f *OSFile) DiscardUnit() int64 { return f.hole.Load() }

// findHoles finds out whether holes can be made in a file that is to be written, at a place
// where it has nothing.
func (f *OSFile) findHoles() {
	f.logical = 1
	if f.Block {
		f.logical = image.SectorSize
		if n, err := unix.IoctlGetInt(f.FD, unix.BLKSSZGET); err == nil && n >= image.SectorSize && n&(n-1) == 0 {
			f.logical = int64(n)
		}
		if f.Write {
			f.hole.Store(f.blockHoles())
		}
		return
	}
	if !f.Write {
		return
	}
	unit := int64(BufferAlign)
	var fs unix.Statfs_t
	if unix.Fstatfs(f.FD, &fs) == nil && fs.Bsize >= image.SectorSize && fs.Bsize <= mostUnit && fs.Bsize&(fs.Bsize-1) == 0 {
		unit = fs.Bsize
	}
	size, err := f.Size()
	if err != nil {
		return
	}
	at := (size + unit - 1) / unit * unit
	if !f.Locked() {
		at += 1 << 40 // whoever else has the file may just be lengthening it
	}
	if err := f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, unit); unable(err) {
		return
	}
	f.hole.Store(unit)
}

// blockHoles asks sysfs what blocks a block device discards, in bytes; 0: none.
func (f *OSFile) blockHoles() int64 {
	var st unix.Stat_t
	if unix.Fstat(f.FD, &st) != nil {
		return 0
	}
	dev := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	limit := func(name string) int64 {
		for _, queue := range []string{"/queue/", "/../queue/"} { // of a disk, of a partition
			p, err := plain.Open(dev+queue+name, unix.O_RDONLY, 0)
			if err != nil {
				continue
			}
			defer p.Close()
			b := make([]byte, 32)
			n, _ := p.ReadOnce(b, 0)
			v, _ := strconv.ParseInt(strings.TrimSpace(string(b[:n])), 10, 64)
			return v
		}
		return 0
	}
	if limit("discard_max_bytes") == 0 {
		return 0
	}
	return max(limit("discard_granularity"), f.logical)
}

// blkDiscard is the ioctl BLKDISCARD, which package unix has the number of only.
func blkDiscard(fd int, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}
