package stack

import (
	"crypto/md5"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// Close makes everything durable, cuts the unused end off the file, writes the
// format extension back, clears in_use and releases the files. No other call
// may be under way. After an error, such as ErrTruncated, in_use is still set
// and the image is safe to be taken over or checked.
func (s *Stack) Close() error {
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	if s.closed.Swap(true) {
		return nil
	}
	s.space.ahead.wait(s, 0)
	var err error
	if s.life.handing.Load() {
		err = fmt.Errorf("%w: the old stack is closed before its end", ErrHandover)
	}
	if !s.readOnly {
		err = errors.Join(err, s.endWriting())
	}
	err = errors.Join(err, s.closeFiles())
	if s.idle() {
		s.freeTable()
	}
	return err
}

func (s *Stack) endWriting() error {
	d := s.top
	if err := s.life.beginStructure(); err != nil {
		return err
	}
	defer s.life.endStructure()
	if err := s.space.intact(s); err != nil {
		return err
	}
	if err := s.sync(); err != nil {
		return err
	}
	if d.Ref.Raw {
		return nil
	}
	if len(s.index.doubt) > 0 {
		for at := range s.index.doubt {
			if err := s.index.settle(s, at); err != nil {
				return err
			}
		}
	}
	if err := s.index.restoreAll(s); err != nil {
		return err
	}
	if err := s.space.cutUnused(s); err != nil {
		return err
	}
	extOff, inUse, err := s.writeExtension()
	if err != nil {
		return err
	}
	// Everything else is durable before the header says that it is.
	if err := s.sync(); err != nil {
		return err
	}
	d.Header.ExtOff, d.Header.InUse = extOff, inUse
	d.Header.SetEmpty(s.allocated.Load() == 0)
	return s.writeHeader()
}

// writeExtension appends what is kept of the extension to the file. It gives
// the header's two fields that belong to it.
func (s *Stack) writeExtension() (off uint64, inUse uint32, err error) {
	d := s.top
	if len(s.bitmaps) == 0 && len(s.unknown) == 0 {
		return 0, 0, nil
	}
	le := binary.LittleEndian
	x := storage.AlignedBuffer(int(s.cluster))
	le.PutUint64(x, format.ExtMagic)
	p := format.ExtHeader
	put := func(magic, flags uint64, data []byte) bool {
		if p+format.SectionHeader+len(data) > len(x) {
			s.log("%q: section %#x of the format extension no longer fits its cluster and is dropped", d.Ref.Path, magic)
			return false
		}
		le.PutUint64(x[p:], magic)
		le.PutUint64(x[p+8:], flags)
		le.PutUint32(x[p+16:], uint32(len(data)))
		copy(x[p+format.SectionHeader:], data)
		p = min(p+format.SectionHeader+(len(data)+7)/8*8, len(x))
		return true
	}
	for _, u := range s.unknown {
		put(u.Magic, u.Flags, u.Data)
	}
	for _, b := range s.bitmaps {
		data, err := s.writeBitmap(b)
		if err != nil {
			return 0, 0, err
		}
		put(format.BitmapMagic, b.Flags, data)
	}
	sum := md5.Sum(x[format.ExtHeader:])
	copy(x[8:], sum[:])
	sector, err := s.append(x)
	return sector, format.InUseClosed, err
}

// writeBitmap appends a bitmap's clusters and returns its section.
func (s *Stack) writeBitmap(b *format.Bitmap) ([]byte, error) {
	le := binary.LittleEndian
	per := uint64(s.cluster) * 8
	l1 := (b.Granules() + per - 1) / per
	data := make([]byte, format.BitmapHeader+8*l1)
	le.PutUint64(data, b.Sectors)
	copy(data[8:], b.ID[:])
	le.PutUint32(data[24:], b.Granularity)
	le.PutUint32(data[28:], uint32(l1))
	buf := storage.AlignedBuffer(int(s.cluster))
	for i := range l1 {
		clear(buf)
		set := uint64(0)
		first, last := i*per, min((i+1)*per, b.Granules())
		for g := first; g < last; g++ {
			bit := atomic.LoadUint64(&b.Bits[g/64]) >> (g % 64) & 1
			buf[(g-first)/8] |= byte(bit << ((g - first) % 8))
			set += bit
		}
		v := uint64(0)
		switch set {
		case 0:
		case last - first:
			v = 1
		default:
			var err error
			if v, err = s.append(buf); err != nil {
				return nil, err
			}
		}
		le.PutUint64(data[format.BitmapHeader+8*i:], v)
	}
	return data, nil
}

// append writes one cluster behind everything else and gives its sector.
func (s *Stack) append(b []byte) (uint64, error) {
	d := s.top
	sector := d.Header.SectorAt(s.space.next)
	s.space.next++
	off := int64(sector) * image.SectorSize
	if err := s.space.intact(s); err != nil {
		return 0, err
	}
	if _, err := d.File.Allocate(off, int64(len(b))); err != nil {
		return 0, d.IOError("allocate", off, err)
	}
	s.space.expect(off + int64(len(b)))
	return sector, d.Write(b, off)
}
