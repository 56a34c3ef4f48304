package storage

import (
	"io"
)

// Direct I/O takes whole units, which are larger than a sector on disks with blocks of
// 4096 bytes (4Kn). A write of less is done by reading the units that it is in and
// writing them whole: they reach the disk whole or not at all, so the order of the BAT's
// sectors, and what a power cut leaves, is as with single sectors.
//
// Of two writes into one unit that way, one would write the other's sectors back as
// they were. They take turns here, but transfers on a ring don't: see Stack.alone.

// outer is the range of whole units around n bytes at off.
func (d *Direct) outer(off, n int64) (lo, hi int64) {
	return off &^ (d.Unit - 1), (off + n + d.Unit - 1) &^ (d.Unit - 1)
}

// ReadAt reads whole units where the transfer is direct, and gives of them what was asked for.
func (f *OSFile) ReadAt(p []byte, off int64) (int, error) {
	if !f.Direct.On {
		return f.File.ReadAt(p, off)
	}
	if f.Direct.aligned(p, off) {
		return f.readUnits(p, off)
	}
	lo, hi := f.Direct.outer(off, int64(len(p)))
	b := AlignedBuffer(int(hi - lo))
	n, err := f.readUnits(b, lo)
	if n = max(n-int(off-lo), 0); n >= len(p) {
		return copy(p, b[off-lo:]), nil // what may be missing is behind it
	}
	copy(p, b[off-lo:][:n])
	return n, err
}

// readUnits reads whole units. Only the end of the file cuts one, and direct I/O can't be
// asked for what follows.
func (f *OSFile) readUnits(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		n, err := f.ReadOnce(p[done:], off+int64(done))
		done += n
		switch {
		case err != nil:
			return done, err
		case n == 0 || int64(n)&(f.Direct.Unit-1) != 0 && done < len(p):
			return done, io.ErrUnexpectedEOF
		}
	}
	return len(p), nil
}

// WriteAt reads, changes and writes whole units where the transfer is direct and p is less.
func (f *OSFile) WriteAt(p []byte, off int64) (int, error) {
	if !f.Direct.On || f.Direct.aligned(p, off) {
		return f.File.WriteAt(p, off)
	}
	lo, hi := f.Direct.outer(off, int64(len(p)))
	b := AlignedBuffer(int(hi - lo))
	if lo != off || hi != off+int64(len(p)) {
		// Only who writes to the same units waits: another one may hang.
		first, last := uint64(lo/f.Direct.Unit), uint64(hi/f.Direct.Unit)-1
		_ = f.units.Lock(first, nil)
		defer f.units.Unlock(first)
		if last != first {
			_ = f.units.Lock(last, nil)
			defer f.units.Unlock(last)
		}
		// The first unit and the last one; those between are replaced.
		if _, err := f.readUnits(b[:f.Direct.Unit], lo); err != nil {
			return 0, err
		}
		if end := len(b) - int(f.Direct.Unit); end > 0 {
			if _, err := f.readUnits(b[end:], lo+int64(end)); err != nil {
				return 0, err
			}
		}
	}
	copy(b[off-lo:], p)
	n, err := f.File.WriteAt(b, lo)
	return min(max(n-int(off-lo), 0), len(p)), err
}
