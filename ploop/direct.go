package ploop

import (
	"unsafe"

	"golang.org/x/sys/unix"
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
type dio struct {
	on       bool  // O_DIRECT is set
	bypasses bool  // and the page cache is known not to be used
	asked    bool  // of the kernel, which answered
	unit     int64 // of offsets and lengths, in bytes; a sector if not on
	memory   int64 // of addresses, in bytes
}

const (
	// mostUnit bounds the unit: the largest logical block that Linux has.
	mostUnit = 64 << 10
	// bufferAlign satisfies the demands on memory of all that is served directly.
	bufferAlign = 4096
	// cacheProbe is how much of a file's beginning is looked for in the page cache, in bytes.
	cacheProbe = 64 << 10

	// OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC and RAMFS_MAGIC of linux/magic.h.
	overlayMagic = 0x794c7630
	tmpfsMagic   = 0x01021994
	ramfsMagic   = 0x858458f6
)

// AlignedBuffer returns n bytes at an address that direct I/O takes.
func AlignedBuffer(n int) []byte {
	b := make([]byte, n+bufferAlign)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (bufferAlign - 1)
	return b[skip : skip+n : skip+n]
}

// aligned says whether a transfer can be direct as it is.
func (d *dio) aligned(p []byte, off int64) bool {
	addr := int64(uintptr(unsafe.Pointer(unsafe.SliceData(p))))
	return addr&(d.memory-1) == 0 && (off|int64(len(p)))&(d.unit-1) == 0
}

// tryDirect sets O_DIRECT if it is of use. A file too short to tell by is served
// through the page cache. Storage that fails says nothing about it.
func (f *osFile) tryDirect() error {
	unit, memory, answered := f.askDirect()
	if answered && (unit == 0 || unit > mostUnit || memory > bufferAlign) {
		return f.setDirect(false)
	}
	units := []int64{unit}
	if !answered {
		// What a file system takes in smaller units it may do by the cache.
		units, memory = []int64{SectorSize, 4096}, SectorSize
	}
	for _, unit := range units {
		d := dio{on: true, asked: answered, bypasses: answered, unit: unit, memory: memory}
		works, err := f.readDirect(unit, memory)
		if err != nil {
			return err
		}
		if !works && !answered {
			d.memory = bufferAlign
			if works, err = f.readDirect(unit, d.memory); err != nil {
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
		d.bypasses = answered || seen
		f.dio = d
		return nil
	}
	return f.setDirect(false)
}

// askDirect asks the kernel for the units of direct I/O; 0: there is none.
func (f *osFile) askDirect() (unit, memory int64, answered bool) {
	var st unix.Statx_t
	err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err != nil || st.Mask&unix.STATX_DIOALIGN == 0 {
		return 0, 0, false
	}
	if st.Dio_mem_align == 0 {
		return 0, 0, true
	}
	// No smaller than a sector, which is what all others count in.
	if unit = int64(st.Dio_offset_align); unit > 0 {
		unit = max(unit, SectorSize)
	}
	return unit, max(int64(st.Dio_mem_align), SectorSize), true
}

// readDirect tries to read one unit at the second one. A file that ends before it says no.
func (f *osFile) readDirect(unit, memory int64) (works bool, err error) {
	if f.setDirect(true) != nil {
		return false, nil
	}
	b := AlignedBuffer(int(memory%bufferAlign + unit))[memory%bufferAlign:]
	var n int
	err = retry(func() error {
		n, err = unix.Pread(f.fd, b, unit)
		return err
	})
	if err != nil && err != unix.EINVAL && !unsupported(err) {
		return false, &IOError{Op: "read", File: f.name, Offset: unit, Err: err}
	}
	return err == nil && int64(n) == unit, nil
}

func (f *osFile) setDirect(on bool) error {
	fl := f.flags
	if on {
		fl |= unix.O_DIRECT
	}
	if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, fl); err != nil {
		return &IOError{Op: "fcntl", File: f.name, Offset: -1, Err: err}
	}
	return nil
}

// buffered has the file served through the page cache after all.
func (f *osFile) buffered() error {
	f.dio = noDirect
	return f.setDirect(false)
}

var noDirect = dio{unit: SectorSize, memory: 1}

// cachesReads says whether direct reads go by the page cache. seen says that the answer is
// worth something.
func (f *osFile) cachesReads(d dio) (cached, seen bool) {
	var fs unix.Statfs_t
	if unix.Fstatfs(f.fd, &fs) != nil {
		return false, false
	}
	switch fs.Type {
	case overlayMagic:
		return false, false // its pages are in the cache of a file below
	case tmpfsMagic, ramfsMagic:
		return true, true // it is nothing else, but for holes
	}
	// The read before has written out what was dirty, so all of it can be dropped.
	_ = unix.Fadvise(f.fd, 0, cacheProbe, unix.FADV_DONTNEED)
	n, seen := f.pagesCached()
	if !seen || n > 0 {
		return n > 0, seen
	}
	if works, err := f.readDirect(d.unit, d.memory); !works || err != nil {
		return false, false
	}
	n, seen = f.pagesCached()
	return n > 0, seen
}

// wroteFirst looks whether a direct write to the file's beginning, which the caller has just
// made, went by the page cache.
func (f *osFile) wroteFirst() {
	if !f.dio.on || f.dio.asked || !f.dio.bypasses {
		return
	}
	n, seen := f.pagesCached()
	f.dio.bypasses = seen && n == 0
}

// pagesCached counts the pages of the file's beginning that are in the page cache.
func (f *osFile) pagesCached() (n uint64, seen bool) {
	var st unix.Cachestat_t
	if unix.Cachestat(uint(f.fd), &unix.CachestatRange{Len: cacheProbe}, &st, 0) != nil {
		return 0, false
	}
	return st.Cache, true
}
