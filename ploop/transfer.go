package ploop

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
func (d *dio) outer(off, n int64) (lo, hi int64) {
	return off &^ (d.unit - 1), (off + n + d.unit - 1) &^ (d.unit - 1)
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	if !f.dio.on {
		return f.plainFile.ReadAt(p, off)
	}
	if f.dio.aligned(p, off) {
		return f.readUnits(p, off)
	}
	lo, hi := f.dio.outer(off, int64(len(p)))
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
func (f *osFile) readUnits(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		n, err := f.readOnce(p[done:], off+int64(done))
		done += n
		switch {
		case err != nil:
			return done, err
		case n == 0 || int64(n)&(f.dio.unit-1) != 0 && done < len(p):
			return done, io.ErrUnexpectedEOF
		}
	}
	return len(p), nil
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	if !f.dio.on || f.dio.aligned(p, off) {
		return f.plainFile.WriteAt(p, off)
	}
	lo, hi := f.dio.outer(off, int64(len(p)))
	b := AlignedBuffer(int(hi - lo))
	if lo != off || hi != off+int64(len(p)) {
		// Only who writes to the same units waits: another one may hang.
		first, last := uint64(lo/f.dio.unit), uint64(hi/f.dio.unit)-1
		_ = f.units.lock(first, nil)
		defer f.units.unlock(first)
		if last != first {
			_ = f.units.lock(last, nil)
			defer f.units.unlock(last)
		}
		// The first unit and the last one; those between are replaced.
		if _, err := f.readUnits(b[:f.dio.unit], lo); err != nil {
			return 0, err
		}
		if end := len(b) - int(f.dio.unit); end > 0 {
			if _, err := f.readUnits(b[end:], lo+int64(end)); err != nil {
				return 0, err
			}
		}
	}
	copy(b[off-lo:], p)
	n, err := f.plainFile.WriteAt(b, lo)
	return min(max(n-int(off-lo), 0), len(p)), err
}
