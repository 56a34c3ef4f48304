package stack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

// otherPlaces is how many places of a file are tried before it is said not to answer: some of
// them may be bad as well.
const otherPlaces = 8

// Elsewhere reads from a level's file outside of a range, past the page cache where that can
// be, to tell storage that is lost from one that has a bad place. Places that hold data are
// spread over the file's clusters; its first page, which some storage answers when it has
// nothing else, counts only if there is no other. It hangs with the storage.
func (s *Stack) Elsewhere(level int, off, n int64) error {
	defer s.calls.end(s.calls.begin())
	if s.closed.Load() {
		return ErrClosed
	}
	if level < 0 || level >= len(s.deltas) {
		return fmt.Errorf("level %d: %w", level, ErrRange)
	}
	d := s.deltas[level]
	size, err := d.File.Size()
	if err != nil {
		return d.IOError("size", -1, err)
	}
	const page = storage.BufferAlign
	from := int64(0) // where data begins
	if !d.Ref.Raw {
		from = int64(d.Header.DataStart()) * image.SectorSize
	}
	b := storage.AlignedBuffer(page)
	err = nil
	tried := 0
	for i := int64(otherPlaces - 1); i >= -1; i-- {
		at := int64(0)
		if i >= 0 {
			at = d.dataAt((from + max(size-from, 0)/otherPlaces*i) &^ (page - 1))
		} else if tried > 0 {
			break
		}
		if at < 0 || at+page > size || at < off+n && off < at+page {
			continue
		}
		if fd := d.File.Fd(); fd >= 0 {
			// Pages that are dirty stay; these were not read from the storage anyway.
			_ = unix.Fadvise(fd, at, page, unix.FADV_DONTNEED)
		}
		tried++
		_, e := d.File.ReadAt(b, at)
		if e == nil {
			return nil
		}
		err = errors.Join(err, d.IOError("read", at, e))
	}
	if tried == 0 {
		return fmt.Errorf("%q has nothing outside of %d bytes at %d to read", d.Ref.Path, n, off)
	}
	return err
}

// dataAt is where data of the file begins from off on, to a page; -1: there is none. What
// can't say that is taken as full.
func (d *delta) dataAt(off int64) int64 {
	fd := d.File.Fd()
	if fd < 0 {
		return off
	}
	const seekData = 3 // SEEK_DATA
	at, err := unix.Seek(fd, off, seekData)
	switch {
	case err == unix.ENXIO:
		return -1
	case err != nil:
		return off
	}
	return at &^ (storage.BufferAlign - 1)
}
