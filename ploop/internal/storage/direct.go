package storage

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/plain"
)

// Two things are told apart that O_DIRECT alone doesn't say.
//
// That transfers may be direct, in units of unit bytes and from memory at multiples of
// memory bytes, makes them fast. Where the kernel can say so it is asked (statx(2),
// STATX_DIOALIGN, Linux 6.1: ext4, xfs, f2fs, block devices); elsewhere a read is tried.
//
// That they do bypass the page cache, so that what was acknowledged has reached the
// storage, is what durability may rely on. A file system may take O_DIRECT and yet cache
// (tmpfs always, ext4 with data=journal before 6.1, btrfs for what it compresses), and
// so may a network's. It is believed of a kernel that gives an alignment, or when pages
// of the file, which were seen to leave the cache, don't come back into it by a direct
// read, nor by the first write (cachestat(2), Linux 6.5). What can't be seen isn't believed.
type Direct struct {
	On       bool  // O_DIRECT is set
	Bypasses bool  // and the page cache is known not to be used
	asked    bool  // of the kernel, which answered
	Unit     int64 // of offsets and lengths, in bytes; a sector if not on
	Memory   int64 // of addresses, in bytes
}

const (
	// mostUnit bounds the unit: the largest logical block that Linux has.
	mostUnit = 64 << 10
	// BufferAlign satisfies the demands on memory of all that is served directly.
	BufferAlign = 4096
	// cacheProbe is how much of a file's beginning is looked for in the page cache, in bytes.
	cacheProbe = 64 << 10

	// OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC and RAMFS_MAGIC of linux/magic.h.
	overlayMagic = 0x794c7630
	tmpfsMagic   = 0x01021994
	ramfsMagic   = 0x858458f6
)

// AlignedBuffer returns n bytes at an address that direct I/O takes.
func AlignedBuffer(n int) []byte {
	b := make([]byte, n+BufferAlign)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (BufferAlign - 1)
	return b[skip : skip+n : skip+n]
}

// aligned says whether a transfer can be direct as it is.
func (d *Direct) aligned(p []byte, off int64) bool {
	addr := int64(uintptr(unsafe.Pointer(unsafe.SliceData(p))))
	return addr&(d.Memory-1) == 0 && (off|int64(len(p)))&(d.Unit-1) == 0
}

// tryDirect sets O_DIRECT if it is of use. A file too short to tell by is served
// through the page cache. Storage that fails says nothing about it.
func (f *OSFile) tryDirect() error {
	unit, memory, answered := f.askDirect()
	if answered && (unit == 0 || unit > mostUnit || memory > BufferAlign) {
		return f.SetDirect(false)
	}
	units := []int64{unit}
	if !answered {
		// What a file system takes in smaller units it may do by the cache.
		units, memory = []int64{image.SectorSize, 4096}, image.SectorSize
	}
	for _, unit := range units {
		d := Direct{On: true, asked: answered, Bypasses: answered, Unit: unit, Memory: memory}
		works, err := f.readDirect(unit, memory)
		if err != nil {
			return err
		}
		if !works && !answered {
			d.Memory = BufferAlign
			if works, err = f.readDirect(unit, d.Memory); err != nil {
				return err
			}
		}
		if !works {
			continue
		}
		cached, seen := false, true
		if !answered {
			cached, seen = f.cachesReads(d)
		}
		if cached {
			continue
		}
		d.Bypasses = answered || seen
		f.Direct = d
		return nil
	}
	return f.SetDirect(false)
}

// askDirect asks the kernel for the units of direct I/O; 0: there is none.
func (f *OSFile) askDirect() (unit, memory int64, answered bool) {
	var st unix.Statx_t
	err := unix.Statx(f.FD, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err != nil || st.Mask&unix.STATX_DIOALIGN == 0 {
		return 0, 0, false
	}
	if st.Dio_mem_align == 0 {
		return 0, 0, true
	}
	// No smaller than a sector, which is what all others count in.
	if unit = int64(st.Dio_offset_align); unit > 0 {
		unit = max(unit, image.SectorSize)
	}
	return unit, max(int64(st.Dio_mem_align), image.SectorSize), true
}

// readDirect tries to read one unit at the second one. A file that ends before it says no.
func (f *OSFile) readDirect(unit, memory int64) (works bool, err error) {
	if f.SetDirect(true) != nil {
		return false, nil
	}
	b := AlignedBuffer(int(memory%BufferAlign + unit))[memory%BufferAlign:]
	var n int
	err = plain.Retry(func() error {
		n, err = unix.Pread(f.FD, b, unit)
		return err
	})
	if err != nil && err != unix.EINVAL && !plain.Unsupported(err) {
		return false, &image.IOError{Op: "read", File: f.Name(), Offset: unit, Err: err}
	}
	return err == nil && int64(n) == unit, nil
}

// SetDirect sets O_DIRECT of the open file, or clears it.
func (f *OSFile) SetDirect(on bool) error {
	fl := f.flags
	if on {
		fl |= unix.O_DIRECT
	}
	if _, err := unix.FcntlInt(uintptr(f.FD), unix.F_SETFL, fl); err != nil {
		return &image.IOError{Op: "fcntl", File: f.Name(), Offset: -1, Err: err}
	}
	return nil
}

// Buffered has the file served through the page cache after all.
func (f *OSFile) Buffered() error {
	f.Direct = noDirect
	return f.SetDirect(false)
}

var noDirect = Direct{Unit: image.SectorSize, Memory: 1}

// cachesReads says whether direct reads go by the page cache. seen says that the answer is
// worth something.
func (f *OSFile) cachesReads(d Direct) (cached, seen bool) {
	var fs unix.Statfs_t
	if unix.Fstatfs(f.FD, &fs) != nil {
		return false, false
	}
	switch fs.Type {
	case overlayMagic:
		return false, false // its pages are in the cache of a file below
	case tmpfsMagic, ramfsMagic:
		return true, true // it is nothing else, but for holes
	}
	// The read before has written out what was dirty, so all of it can be dropped.
	_ = unix.Fadvise(f.FD, 0, cacheProbe, unix.FADV_DONTNEED)
	n, seen := f.pagesCached()
	if !seen || n > 0 {
		return n > 0, seen
	}
	if works, err := f.readDirect(d.Unit, d.Memory); !works || err != nil {
		return false, false
	}
	n, seen = f.pagesCached()
	return n > 0, seen
}

// WroteFirst looks whether a direct write to the file's beginning, which the caller has just
// made, went by the page cache.
func (f *OSFile) WroteFirst() {
	if !f.Direct.On || f.Direct.asked || !f.Direct.Bypasses {
		return
	}
	n, seen := f.pagesCached()
	f.Direct.Bypasses = seen && n == 0
}

// pagesCached counts the pages of the file's beginning that are in the page cache.
func (f *OSFile) pagesCached() (n uint64, seen bool) {
	var st unix.Cachestat_t
	if unix.Cachestat(uint(f.FD), &unix.CachestatRange{Len: cacheProbe}, &st, 0) != nil {
		return 0, false
	}
	return st.Cache, true
}
