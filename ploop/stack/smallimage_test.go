package stack

import (
	"bytes"
	"crypto/md5"
	"encoding/binary"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// The small image that the cases damage: 40 clusters of 4 KiB, of which 3 are
// stored.
const (
	smallCluster = 8 // sectors
	smallSectors = 40 * smallCluster
)

type smallImage struct{ b []byte }

func newSmallImage(version int) *smallImage {
	h, err := format.NewHeader(version, smallSectors, smallCluster)
	if err != nil {
		panic(err)
	}
	im := &smallImage{make([]byte, (h.SectorAt(3))*image.SectorSize)}
	copy(im.b, h.Encode())
	for k, i := range []int{0, 7, 39} {
		v, _ := h.EntryOf(h.SectorAt(uint64(k)))
		im.entry(i, v)
		at := h.SectorAt(uint64(k)) * image.SectorSize
		copy(im.b[at:], bytes.Repeat([]byte{byte(k + 1)}, smallCluster*image.SectorSize))
	}
	return im
}

func (im *smallImage) put32(off int, v uint32) { binary.LittleEndian.PutUint32(im.b[off:], v) }
func (im *smallImage) put64(off int, v uint64) { binary.LittleEndian.PutUint64(im.b[off:], v) }
func (im *smallImage) entry(i int, v uint32)   { im.put32(format.HeaderSize+4*i, v) }

// withBitmap appends a format extension with one dirty bitmap, one bit a
// sector of the disk, whose bits lie in a cluster of their own, and the given
// further sections.
func (im *smallImage) withBitmap(more ...format.Section) *smallImage {
	bits := uint64(len(im.b) / image.SectorSize)
	cluster := make([]byte, smallCluster*image.SectorSize)
	cluster[0], cluster[39] = 0b101, 0x80
	im.b = append(im.b, cluster...)
	data := make([]byte, format.BitmapHeader+8)
	binary.LittleEndian.PutUint64(data, smallSectors)
	copy(data[8:], "0123456789abcdef")
	binary.LittleEndian.PutUint32(data[24:], 1)
	binary.LittleEndian.PutUint32(data[28:], 1)
	binary.LittleEndian.PutUint64(data[32:], bits)
	return im.withExtension(append([]format.Section{{Magic: format.BitmapMagic, Data: data}}, more...)...)
}

func (im *smallImage) withExtension(sections ...format.Section) *smallImage {
	x := make([]byte, smallCluster*image.SectorSize)
	binary.LittleEndian.PutUint64(x, format.ExtMagic)
	p := x[format.ExtHeader:]
	for _, s := range sections {
		binary.LittleEndian.PutUint64(p, s.Magic)
		binary.LittleEndian.PutUint64(p[8:], s.Flags)
		binary.LittleEndian.PutUint32(p[16:], uint32(len(s.Data)))
		copy(p[format.SectionHeader:], s.Data)
		p = p[format.SectionHeader+(len(s.Data)+7)/8*8:]
	}
	im.put64(56, uint64(len(im.b)/image.SectorSize))
	im.put32(44, format.InUseClosed)
	im.b = append(im.b, x...)
	im.sum()
	return im
}

// ext is the extension's cluster, the last one of the file.
func (im *smallImage) ext() []byte { return im.b[len(im.b)-smallCluster*image.SectorSize:] }

func (im *smallImage) sum() {
	s := md5.Sum(im.ext()[format.ExtHeader:])
	copy(im.ext()[8:], s[:])
}
