package format

import (
	"bytes"
	"crypto/md5"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

const (
	ExtMagic        = 0xAB234CEF23DCEA87
	ExtHeader       = 24 // magic and MD5
	SectionHeader   = 24
	BitmapMagic     = 0x20385FAE252CB34A
	BitmapHeader    = 32
	SectionNeeded   = 1 << 0 // can't load it: don't write the image
	SectionTransit  = 1 << 1 // keep it though unknown
	maxExtension    = 64 << 20
	maxBitmapMemory = 64 << 20
	maxSections     = 4096
)

// Extension is the loaded format extension.
type Extension struct {
	Bitmaps []*Bitmap
	Unknown []Section // in the order of the file
	Places  []uint64  // sectors of the file where its own cluster and the bitmaps' begin
}

// Section is a section of the extension that this software doesn't know.
type Section struct {
	Magic uint64
	Flags uint64
	Data  []byte
}

// Bitmap is a dirty bitmap that the image carries for backup software: a bit
// per granule of the disk, set when the granule was written. While the image
// is open for writing, the writes of this package go on setting it.
type Bitmap struct {
	ID          [16]byte // as on disk, in RFC byte order
	Granularity uint32   // in sectors
	Flags       uint64
	Sectors     uint64
	Bits        []uint64 // modified atomically while the stack is live
}

// Granules is the number of valid bits.
func (b *Bitmap) Granules() uint64 {
	g := uint64(b.Granularity)
	return (b.Sectors + g - 1) / g
}

// Dirty counts the granules that are set.
func (b *Bitmap) Dirty() (n uint64) {
	for i := range b.Granules() {
		n += b.Bits[i/64] >> (i % 64) & 1
	}
	return n
}

// BadExt says what is wrong with the format extension.
func (d *Delta) BadExt(off int64, class error, what, found, want string) error {
	return &image.FormatError{File: d.Ref.Path, Offset: off, What: "format extension: " + what, Found: found, Want: want, Class: class}
}

// readExtension loads the extension of a cleanly closed image.
func readExtension(d *Delta) (*Extension, error) {
	h := &d.Header
	size := h.ClusterSize()
	if size > maxExtension || size < ExtHeader+SectionHeader {
		return nil, d.BadExt(28, image.ErrLimit, "cluster size", fmt.Sprintf("%d bytes", size), fmt.Sprintf("%d to %d", ExtHeader+SectionHeader, maxExtension))
	}
	off := int64(h.ExtOff) * image.SectorSize
	if h.ExtOff < h.DataStart() || h.ExtOff > uint64(d.Size/image.SectorSize) || off+size > d.Size {
		return nil, d.BadExt(56, image.ErrCorrupt, "place", fmt.Sprintf("sector %d", h.ExtOff), fmt.Sprintf("a cluster of data within the file's %d sectors", d.Size/image.SectorSize))
	}
	b := storage.AlignedBuffer(int(size))
	if _, err := d.File.ReadAt(b, off); err != nil {
		return nil, d.IOError("read format extension", off, err)
	}
	return parseExtension(d, b, off)
}

// parseExtension decodes the extension's cluster b, which lies at off.
func parseExtension(d *Delta, b []byte, off int64) (*Extension, error) {
	le := binary.LittleEndian
	if len(b) < ExtHeader {
		return nil, d.BadExt(off, image.ErrCorrupt, "size", fmt.Sprintf("%d bytes", len(b)), fmt.Sprintf("at least %d", ExtHeader))
	}
	if m := le.Uint64(b); m != ExtMagic {
		return nil, d.BadExt(off, image.ErrCorrupt, "magic", fmt.Sprintf("%#x", m), fmt.Sprintf("%#x", uint64(ExtMagic)))
	}
	if sum := md5.Sum(b[ExtHeader:]); !bytes.Equal(sum[:], b[8:ExtHeader]) {
		return nil, d.BadExt(off+8, image.ErrCorrupt, "MD5 sum", fmt.Sprintf("%x", b[8:ExtHeader]), fmt.Sprintf("%x", sum))
	}
	x := &Extension{Places: []uint64{uint64(off / image.SectorSize)}}
	memory, sections := 0, 0
	for p := ExtHeader; ; {
		if len(b)-p < 8 || le.Uint64(b[p:]) == 0 {
			return x, nil // the end, by its mark or by the cluster's
		}
		if len(b)-p < SectionHeader {
			return nil, d.BadExt(off+int64(p), image.ErrCorrupt, "section", fmt.Sprintf("%d bytes to the end of the cluster", len(b)-p), fmt.Sprintf("at least %d", SectionHeader))
		}
		if sections++; sections > maxSections {
			return nil, d.BadExt(off+int64(p), image.ErrLimit, "sections", fmt.Sprintf("more than %d", maxSections), "fewer")
		}
		s := Section{Magic: le.Uint64(b[p:]), Flags: le.Uint64(b[p+8:])}
		n := int64(le.Uint32(b[p+16:]))
		if n > int64(len(b)-p-SectionHeader) {
			return nil, d.BadExt(off+int64(p)+16, image.ErrCorrupt, "section size", fmt.Sprintf("%d bytes", n), fmt.Sprintf("at most the %d left in the cluster", len(b)-p-SectionHeader))
		}
		s.Data = b[p+SectionHeader : p+SectionHeader+int(n)]
		if s.Magic == BitmapMagic {
			m, err := x.readBitmap(d, s, off+int64(p)+SectionHeader, &memory)
			var bad *image.FormatError
			if s.Flags&SectionNeeded != 0 && errors.As(err, &bad) {
				bad.Class = image.ErrUnsupported // can't load it: don't write the image
			}
			if err != nil {
				return nil, err
			}
			x.Bitmaps = append(x.Bitmaps, m)
		} else {
			s.Data = slices.Clone(s.Data)
			x.Unknown = append(x.Unknown, s)
		}
		p += SectionHeader + int(n+7)/8*8
		if p > len(b) {
			return x, nil
		}
	}
}

// readBitmap loads the bits of a bitmap section whose data lies at off.
func (x *Extension) readBitmap(d *Delta, s Section, off int64, memory *int) (*Bitmap, error) {
	le, h := binary.LittleEndian, &d.Header
	if len(s.Data) < BitmapHeader {
		return nil, d.BadExt(off, image.ErrCorrupt, "dirty bitmap", fmt.Sprintf("%d bytes", len(s.Data)), fmt.Sprintf("at least %d", BitmapHeader))
	}
	m := &Bitmap{ID: [16]byte(s.Data[8:24]), Granularity: le.Uint32(s.Data[24:]), Flags: s.Flags, Sectors: le.Uint64(s.Data)}
	if m.Sectors != h.Sectors {
		return nil, d.BadExt(off, image.ErrCorrupt, "dirty bitmap's disk size", fmt.Sprintf("%d sectors", m.Sectors), fmt.Sprint(h.Sectors))
	}
	if m.Granularity == 0 {
		return nil, d.BadExt(off+24, image.ErrCorrupt, "dirty bitmap's granularity", "0 sectors", "at least 1")
	}
	words := (m.Granules() + 63) / 64
	if words > maxBitmapMemory/8 || *memory+int(words)*8 > maxBitmapMemory {
		return nil, d.BadExt(off+24, image.ErrLimit, "dirty bitmaps", fmt.Sprintf("%d granules in one", m.Granules()), fmt.Sprintf("at most %d bytes in all", maxBitmapMemory))
	}
	l1, perL1 := uint64(le.Uint32(s.Data[28:])), uint64(h.ClusterSize())*8
	// What is missing of the L1 is clear: the ploop tool makes a fresh bitmap
	// without any.
	if most := (m.Granules() + perL1 - 1) / perL1; l1 > most || uint64(len(s.Data)-BitmapHeader)/8 < l1 {
		return nil, d.BadExt(off+28, image.ErrCorrupt, "dirty bitmap's L1 size", fmt.Sprintf("%d in %d bytes", l1, len(s.Data)), fmt.Sprintf("at most %d with as many entries", most))
	}
	*memory += int(words) * 8
	m.Bits = make([]uint64, words)
	var buf []byte
	for i := range l1 {
		at := le.Uint64(s.Data[BitmapHeader+8*i:])
		first, last := i*perL1, min((i+1)*perL1, m.Granules())
		switch {
		case at == 0:
		case at == 1:
			for g := first; g < last; g++ {
				m.Bits[g/64] |= 1 << (g % 64)
			}
		case at < h.DataStart() || at > uint64(d.Size/image.SectorSize) || int64(at)*image.SectorSize+h.ClusterSize() > d.Size:
			return nil, d.BadExt(off+BitmapHeader+8*int64(i), image.ErrCorrupt, "dirty bitmap's L1 entry", fmt.Sprintf("sector %d", at), fmt.Sprintf("a cluster of data within the file's %d sectors", d.Size/image.SectorSize))
		default:
			x.Places = append(x.Places, at)
			// No more than the bits take: a small bitmap in a large cluster
			// must not cost the cluster, since there may be many.
			n := (int(last-first+7)/8 + image.SectorSize - 1) / image.SectorSize * image.SectorSize
			if len(buf) < n {
				buf = storage.AlignedBuffer(n)
			}
			if _, err := d.File.ReadAt(buf[:n], int64(at)*image.SectorSize); err != nil {
				return nil, d.IOError("read dirty bitmap", int64(at)*image.SectorSize, err)
			}
			for g := first; g < last; g++ {
				k := g - first
				m.Bits[g/64] |= uint64(buf[k/8]>>(k%8)&1) << (g % 64)
			}
		}
	}
	return m, nil
}

// Forget gives back the memory of what only a writer of the image needs.
func (x *Extension) Forget() {
	for _, b := range x.Bitmaps {
		b.Bits = nil
	}
	x.Unknown = nil
}

// Keepable returns what of an extension may still be in the image after
// writing: the bitmaps, which are kept true, and unknown sections that ask to
// be carried. It fails where the image must not be written.
func (x *Extension) Keepable(d *Delta) (*Extension, error) {
	k := &Extension{Bitmaps: x.Bitmaps}
	for _, s := range x.Unknown {
		if s.Flags&SectionNeeded != 0 {
			return nil, d.BadExt(int64(d.Header.ExtOff)*image.SectorSize, image.ErrUnsupported, "section that must be understood before the image is written", fmt.Sprintf("%#x", s.Magic), "one this software knows; open the image read-only")
		}
		if s.Flags&SectionTransit != 0 {
			k.Unknown = append(k.Unknown, s)
		}
	}
	return k, nil
}
