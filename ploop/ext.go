package ploop

import (
	"bytes"
	"crypto/md5"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

const (
	extMagic        = 0xAB234CEF23DCEA87
	extHeader       = 24 // magic and MD5
	sectionHeader   = 24
	bitmapMagic     = 0x20385FAE252CB34A
	bitmapHeader    = 32
	sectionNeeded   = 1 << 0 // can't load it: don't write the image
	sectionTransit  = 1 << 1 // keep it though unknown
	maxExtension    = 64 << 20
	maxBitmapMemory = 64 << 20
	maxSections     = 4096
)

// extension is the loaded format extension.
type extension struct {
	bitmaps []*Bitmap
	unknown []section // in the order of the file
	places  []uint64  // sectors of the file where its own cluster and the bitmaps' begin
}

type section struct {
	magic uint64
	flags uint64
	data  []byte
}

// Bitmap is a dirty bitmap that the image carries for backup software: a bit
// per granule of the disk, set when the granule was written. While the image
// is open for writing, the writes of this package go on setting it.
type Bitmap struct {
	ID          [16]byte // as on disk, in RFC byte order
	Granularity uint32   // in sectors
	flags       uint64
	sectors     uint64
	bits        []uint64 // modified atomically while the stack is live
}

// granules is the number of valid bits.
func (b *Bitmap) granules() uint64 {
	g := uint64(b.Granularity)
	return (b.sectors + g - 1) / g
}

// Dirty counts the granules that are set.
func (b *Bitmap) Dirty() (n uint64) {
	for i := range b.granules() {
		n += b.bits[i/64] >> (i % 64) & 1
	}
	return n
}

func (d *Delta) badExt(off int64, class error, what, found, want string) error {
	return &FormatError{File: d.ref.Path, Offset: off, What: "format extension: " + what, Found: found, Want: want, Class: class}
}

// readExtension loads the extension of a cleanly closed image.
func readExtension(d *Delta) (*extension, error) {
	h := &d.hdr
	size := h.ClusterSize()
	if size > maxExtension || size < extHeader+sectionHeader {
		return nil, d.badExt(28, ErrLimit, "cluster size", fmt.Sprintf("%d bytes", size), fmt.Sprintf("%d to %d", extHeader+sectionHeader, maxExtension))
	}
	off := int64(h.ExtOff) * SectorSize
	if h.ExtOff < h.DataStart() || h.ExtOff > uint64(d.size/SectorSize) || off+size > d.size {
		return nil, d.badExt(56, ErrCorrupt, "place", fmt.Sprintf("sector %d", h.ExtOff), fmt.Sprintf("a cluster of data within the file's %d sectors", d.size/SectorSize))
	}
	b := AlignedBuffer(int(size))
	if _, err := d.file.ReadAt(b, off); err != nil {
		return nil, d.ioError("read format extension", off, err)
	}
	return parseExtension(d, b, off)
}

// parseExtension decodes the extension's cluster b, which lies at off.
func parseExtension(d *Delta, b []byte, off int64) (*extension, error) {
	le := binary.LittleEndian
	if len(b) < extHeader {
		return nil, d.badExt(off, ErrCorrupt, "size", fmt.Sprintf("%d bytes", len(b)), fmt.Sprintf("at least %d", extHeader))
	}
	if m := le.Uint64(b); m != extMagic {
		return nil, d.badExt(off, ErrCorrupt, "magic", fmt.Sprintf("%#x", m), fmt.Sprintf("%#x", uint64(extMagic)))
	}
	if sum := md5.Sum(b[extHeader:]); !bytes.Equal(sum[:], b[8:extHeader]) {
		return nil, d.badExt(off+8, ErrCorrupt, "MD5 sum", fmt.Sprintf("%x", b[8:extHeader]), fmt.Sprintf("%x", sum))
	}
	x := &extension{places: []uint64{uint64(off / SectorSize)}}
	memory, sections := 0, 0
	for p := extHeader; ; {
		if len(b)-p < 8 || le.Uint64(b[p:]) == 0 {
			return x, nil // the end, by its mark or by the cluster's
		}
		if len(b)-p < sectionHeader {
			return nil, d.badExt(off+int64(p), ErrCorrupt, "section", fmt.Sprintf("%d bytes to the end of the cluster", len(b)-p), fmt.Sprintf("at least %d", sectionHeader))
		}
		if sections++; sections > maxSections {
			return nil, d.badExt(off+int64(p), ErrLimit, "sections", fmt.Sprintf("more than %d", maxSections), "fewer")
		}
		s := section{magic: le.Uint64(b[p:]), flags: le.Uint64(b[p+8:])}
		n := int64(le.Uint32(b[p+16:]))
		if n > int64(len(b)-p-sectionHeader) {
			return nil, d.badExt(off+int64(p)+16, ErrCorrupt, "section size", fmt.Sprintf("%d bytes", n), fmt.Sprintf("at most the %d left in the cluster", len(b)-p-sectionHeader))
		}
		s.data = b[p+sectionHeader : p+sectionHeader+int(n)]
		if s.magic == bitmapMagic {
			m, err := x.readBitmap(d, s, off+int64(p)+sectionHeader, &memory)
			var bad *FormatError
			if s.flags&sectionNeeded != 0 && errors.As(err, &bad) {
				bad.Class = ErrUnsupported // can't load it: don't write the image
			}
			if err != nil {
				return nil, err
			}
			x.bitmaps = append(x.bitmaps, m)
		} else {
			s.data = slices.Clone(s.data)
			x.unknown = append(x.unknown, s)
		}
		p += sectionHeader + int(n+7)/8*8
		if p > len(b) {
			return x, nil
		}
	}
}

// readBitmap loads the bits of a bitmap section whose data lies at off.
func (x *extension) readBitmap(d *Delta, s section, off int64, memory *int) (*Bitmap, error) {
	le, h := binary.LittleEndian, &d.hdr
	if len(s.data) < bitmapHeader {
		return nil, d.badExt(off, ErrCorrupt, "dirty bitmap", fmt.Sprintf("%d bytes", len(s.data)), fmt.Sprintf("at least %d", bitmapHeader))
	}
	m := &Bitmap{ID: [16]byte(s.data[8:24]), Granularity: le.Uint32(s.data[24:]), flags: s.flags, sectors: le.Uint64(s.data)}
	if m.sectors != h.Sectors {
		return nil, d.badExt(off, ErrCorrupt, "dirty bitmap's disk size", fmt.Sprintf("%d sectors", m.sectors), fmt.Sprint(h.Sectors))
	}
	if m.Granularity == 0 {
		return nil, d.badExt(off+24, ErrCorrupt, "dirty bitmap's granularity", "0 sectors", "at least 1")
	}
	words := (m.granules() + 63) / 64
	if words > maxBitmapMemory/8 || *memory+int(words)*8 > maxBitmapMemory {
		return nil, d.badExt(off+24, ErrLimit, "dirty bitmaps", fmt.Sprintf("%d granules in one", m.granules()), fmt.Sprintf("at most %d bytes in all", maxBitmapMemory))
	}
	l1, perL1 := uint64(le.Uint32(s.data[28:])), uint64(h.ClusterSize())*8
	// What is missing of the L1 is clear: the ploop tool makes a fresh bitmap
	// without any.
	if most := (m.granules() + perL1 - 1) / perL1; l1 > most || uint64(len(s.data)-bitmapHeader)/8 < l1 {
		return nil, d.badExt(off+28, ErrCorrupt, "dirty bitmap's L1 size", fmt.Sprintf("%d in %d bytes", l1, len(s.data)), fmt.Sprintf("at most %d with as many entries", most))
	}
	*memory += int(words) * 8
	m.bits = make([]uint64, words)
	var buf []byte
	for i := range l1 {
		at := le.Uint64(s.data[bitmapHeader+8*i:])
		first, last := i*perL1, min((i+1)*perL1, m.granules())
		switch {
		case at == 0:
		case at == 1:
			for g := first; g < last; g++ {
				m.bits[g/64] |= 1 << (g % 64)
			}
		case at < h.DataStart() || at > uint64(d.size/SectorSize) || int64(at)*SectorSize+h.ClusterSize() > d.size:
			return nil, d.badExt(off+bitmapHeader+8*int64(i), ErrCorrupt, "dirty bitmap's L1 entry", fmt.Sprintf("sector %d", at), fmt.Sprintf("a cluster of data within the file's %d sectors", d.size/SectorSize))
		default:
			x.places = append(x.places, at)
			// No more than the bits take: a small bitmap in a large cluster
			// must not cost the cluster, since there may be many.
			n := (int(last-first+7)/8 + SectorSize - 1) / SectorSize * SectorSize
			if len(buf) < n {
				buf = AlignedBuffer(n)
			}
			if _, err := d.file.ReadAt(buf[:n], int64(at)*SectorSize); err != nil {
				return nil, d.ioError("read dirty bitmap", int64(at)*SectorSize, err)
			}
			for g := first; g < last; g++ {
				k := g - first
				m.bits[g/64] |= uint64(buf[k/8]>>(k%8)&1) << (g % 64)
			}
		}
	}
	return m, nil
}

// forget gives back the memory of what only a writer of the image needs.
func (x *extension) forget() {
	for _, b := range x.bitmaps {
		b.bits = nil
	}
	x.unknown = nil
}

// keepable returns what of an extension may still be in the image after
// writing: the bitmaps, which are kept true, and unknown sections that ask to
// be carried. It fails where the image must not be written.
func (x *extension) keepable(d *Delta) (*extension, error) {
	k := &extension{bitmaps: x.bitmaps}
	for _, s := range x.unknown {
		if s.flags&sectionNeeded != 0 {
			return nil, d.badExt(int64(d.hdr.ExtOff)*SectorSize, ErrUnsupported, "section that must be understood before the image is written", fmt.Sprintf("%#x", s.magic), "one this software knows; open the image read-only")
		}
		if s.flags&sectionTransit != 0 {
			k.unknown = append(k.unknown, s)
		}
	}
	return k, nil
}
