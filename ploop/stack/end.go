package stack

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
)

// The end of the top's file.
//
// Somebody may cut the file off while it is served. A write behind the new end,
// or a growth, would make it longer again, with zeroes where data was, and
// nobody could tell. So whatever makes it longer first sees that it ends where
// it should. A transfer past this package doesn't; therefore the last cluster
// of the file is a guard that nothing is ever stored in: whatever transfer
// makes a cut file longer, it doesn't come up to the old end, and the next one
// who asks finds that out. (What can't be found out: a raw image, which has no
// guard, that was cut and then written to its very end; and a file that was
// cut and made as long as it was by the same stranger.)
//
// What a stranger appended isn't overwritten and isn't cut off, since it might
// be of worth: it is logged, and is a leak to a check.

func raise(v *atomic.Int64, to int64) {
	for was := v.Load(); was < to && !v.CompareAndSwap(was, to); was = v.Load() {
	}
}

// expect says that the file ends at size or behind it.
func (p *space) expect(size int64) {
	raise(&p.size, size)
	raise(&p.reach, size)
}

// Intact is ErrTruncated if the top's file has become shorter than this stack
// left it, and remains so. It asks the storage.
func (s *Stack) Intact() error {
	if s.readOnly {
		return nil
	}
	defer s.calls.end(s.calls.begin())
	if s.closed.Load() {
		return ErrClosed
	}
	return s.space.intact(s)
}

func (p *space) intact(s *Stack) error {
	want := p.size.Load()
	size, err := s.top.File.Size()
	if err != nil {
		return s.top.IOError("size", -1, err)
	}
	if size >= want && !p.cut.Load() {
		return nil
	}
	p.cut.Store(true)
	return s.top.truncated(size, want)
}

func (d *delta) truncated(found, want int64) error {
	mark := " and stays marked in use; save a copy, and see what is gone by 'holdfast image check'"
	if d.Ref.Raw {
		mark = ""
	}
	return &image.FormatError{File: d.Ref.Path, Offset: -1, What: "end of the file", Class: ErrTruncated,
		Found: fmt.Sprintf("%d bytes", found),
		Want:  fmt.Sprintf("at least %d: it was cut off by somebody else while it was served%s", want, mark)}
}

// guard puts the guard behind the room up to a position, which is all that the file has. Storage
// that can't hold one cluster more, even one without data, does without.
func (p *space) guard(s *Stack, have uint64) error {
	end := int64(s.top.Header.SectorAt(have)) * image.SectorSize
	if p.size.Load() >= end+s.cluster {
		return nil
	}
	raise(&p.reach, end+s.cluster)
	switch err := s.top.File.Truncate(end + s.cluster); {
	case err == nil:
		p.expect(end + s.cluster)
	case !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) && !errors.Is(err, unix.EFBIG):
		return s.top.IOError("truncate", end+s.cluster, err)
	}
	return nil
}

// cutTail cuts the unused end off a file that was just opened, so that what
// grows there later is known to be zero, and puts the guard there.
func (p *space) cutTail(s *Stack) error {
	d := s.top
	size, err := d.File.Size()
	if err != nil {
		return d.IOError("size", -1, err)
	}
	if size < d.Size {
		return d.truncated(size, d.Size)
	}
	if end := int64(d.Header.SectorAt(p.next)) * image.SectorSize; size > end {
		if err := d.File.Truncate(end); err != nil {
			return d.IOError("truncate", end, err)
		}
		size = end
	}
	p.size.Store(size)
	p.reach.Store(size)
	return p.guard(s, p.have)
}

// cutUnused cuts off at the end what this stack made and didn't use. It never
// makes the file longer.
func (p *space) cutUnused(s *Stack) error {
	d := s.top
	p.next = max(s.usedEnd(), s.keep)
	size, err := d.File.Size()
	if err != nil {
		return d.IOError("size", -1, err)
	}
	if size > p.reach.Load() {
		p.logForeign(s, size)
		p.next = p.positionFrom(s, size)
		return nil
	}
	end := int64(d.Header.SectorAt(p.next)) * image.SectorSize
	if want := min(end, p.size.Load()); size < want {
		return d.truncated(size, want)
	}
	if size <= end {
		return nil
	}
	p.size.Store(end)
	p.reach.Store(end)
	return d.IOError("truncate", end, d.File.Truncate(end))
}

// skipForeign has new clusters come from behind what a stranger appended. The
// caller holds p.growing.
func (p *space) skipForeign(s *Stack) error {
	size, err := s.top.File.Size()
	if err != nil {
		return s.top.IOError("size", -1, err)
	}
	if size > p.reach.Load() {
		p.logForeign(s, size)
		p.mu.Lock()
		p.have = p.positionFrom(s, size)
		p.next = p.have
		p.mu.Unlock()
	}
	return nil
}

// positionFrom is the first position at or behind size.
func (p *space) positionFrom(s *Stack, size int64) uint64 {
	h := &s.top.Header
	n := uint64(size+image.SectorSize-1)/image.SectorSize - h.DataStart()
	return (n + uint64(h.ClusterSectors) - 1) / uint64(h.ClusterSectors)
}

func (p *space) logForeign(s *Stack, size int64) {
	if !p.foreign.Swap(true) {
		end := p.reach.Load()
		s.log("%q: somebody else has appended to the file: it has %d bytes, and this device made it %d long; what lies between is neither used nor cut off", s.top.Ref.Path, size, end)
	}
}
