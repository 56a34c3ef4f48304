package format

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"holdfast/ploop/image"
)

// Limits of this software. The format's own are wider; these keep a hostile
// file from costing more memory than its disk is worth.
const (
	// MaxBATEntries is QEMU's limit, which makes and opens as many (a BAT of
	// INT_MAX bytes): 512 TiB of disk at clusters of 1 MiB, 32 TiB at 64 KiB.
	// It bounds the merged table, eight bytes an entry, to 4 GiB, of which only
	// the pages that have entries cost memory.
	MaxBATEntries = math.MaxInt32 / BATEntrySize
	// maxFileClusters bounds how far into a file an entry may point, and with
	// it the bitmap that finds duplicates, to 128 MiB.
	maxFileClusters = 1 << 30
	// MaxClusterSize is in bytes. The ploop tool stops at 64 MiB.
	MaxClusterSize = 1 << 30
)

const (
	HeaderSize   = 64
	BATEntrySize = 4
	diskType     = 2

	InUseDirty  = 0x746F6E59 // open for writing
	InUseClosed = 0x312e3276 // closed by software that knows the extension

	FlagEmpty      = 1 << 0 // nothing is allocated; written for OpenVZ's tool, which wants it right, and never relied on
	FlagConverting = 1 << 1 // a change of version is under way
)

var (
	magicV1 = []byte("WithoutFreeSpace")
	magicV2 = []byte("WithouFreSpacExt")
)

// Header is the head of an image file, decoded.
type Header struct {
	Version        int // 1 or 2
	Heads          uint32
	Cylinders      uint32
	ClusterSectors uint32
	BATEntries     uint32
	Sectors        uint64 // size of the disk
	InUse          uint32
	DataOff        uint32 // as stored, in sectors; see DataStart
	Flags          uint32
	ExtOff         uint64 // in sectors; 0: no format extension
}

// BATEnd is the first byte behind the BAT.
func (h *Header) BATEnd() int64 {
	return HeaderSize + BATEntrySize*int64(h.BATEntries)
}

// DataStart is the first sector that may hold data. A version 1 image may
// leave the field 0, which means the first sector behind the BAT.
func (h *Header) DataStart() uint64 {
	if h.DataOff == 0 {
		return uint64((h.BATEnd() + image.SectorSize - 1) / image.SectorSize)
	}
	return uint64(h.DataOff)
}

// ClusterSize is in bytes.
func (h *Header) ClusterSize() int64 { return int64(h.ClusterSectors) * image.SectorSize }

// Clusters is the number of clusters that the disk needs, at most BATEntries.
func (h *Header) Clusters() uint64 {
	c := uint64(h.ClusterSectors)
	return (h.Sectors + c - 1) / c
}

// SectorOf translates a BAT entry into the sector of the file where the
// cluster begins.
func (h *Header) SectorOf(entry uint32) uint64 {
	if h.Version == 1 {
		return uint64(entry)
	}
	return uint64(entry) * uint64(h.ClusterSectors)
}

// EntryOf is the inverse of SectorOf; ok is false where the format has no
// entry that could say it.
func (h *Header) EntryOf(sector uint64) (entry uint32, ok bool) {
	if h.Version == 2 {
		sector /= uint64(h.ClusterSectors)
	}
	return uint32(sector), sector <= 1<<32-1
}

// PositionOf numbers the clusters of the file from DataStart on.
func (h *Header) PositionOf(sector uint64) uint64 {
	return (sector - h.DataStart()) / uint64(h.ClusterSectors)
}

// SectorAt is the inverse of PositionOf.
func (h *Header) SectorAt(position uint64) uint64 {
	return h.DataStart() + position*uint64(h.ClusterSectors)
}

// SectorOfEntry is where in the file the sector lies that holds the BAT entry
// of cluster i. The BAT is written by sectors: the largest piece that a power
// cut doesn't tear.
func SectorOfEntry(i uint64) int64 {
	return (HeaderSize + BATEntrySize*int64(i)) / image.SectorSize * image.SectorSize
}

// Encode is the inverse of ParseHeader: the first 64 bytes of the file.
func (h *Header) Encode() []byte {
	b := make([]byte, HeaderSize)
	le := binary.LittleEndian
	if h.Version == 1 {
		copy(b, magicV1)
	} else {
		copy(b, magicV2)
	}
	le.PutUint32(b[16:], diskType)
	le.PutUint32(b[20:], h.Heads)
	le.PutUint32(b[24:], h.Cylinders)
	le.PutUint32(b[28:], h.ClusterSectors)
	le.PutUint32(b[32:], h.BATEntries)
	le.PutUint64(b[36:], h.Sectors)
	le.PutUint32(b[44:], h.InUse)
	le.PutUint32(b[48:], h.DataOff)
	le.PutUint32(b[52:], h.Flags)
	le.PutUint64(b[56:], h.ExtOff)
	return b
}

// NewHeader lays out an image as every other software takes it: the data
// begins at the first cluster behind the BAT, which is the one place that
// dm-ploop accepts, and as far as version 1 allows the offset is spelled out.
func NewHeader(version int, sectors uint64, clusterSectors uint32) (*Header, error) {
	n := (sectors + uint64(clusterSectors) - 1) / uint64(clusterSectors)
	if n > MaxBATEntries {
		return nil, fmt.Errorf("%w: %d clusters, at most %d are possible; larger clusters make fewer of them", image.ErrLimit, n, MaxBATEntries)
	}
	h := &Header{Version: version, ClusterSectors: clusterSectors, BATEntries: uint32(n), Sectors: sectors, Heads: 16}
	h.Cylinders = uint32(min(sectors/(16*32), math.MaxUint32))
	first := (uint64(h.BATEnd()) + uint64(h.ClusterSize()) - 1) / uint64(h.ClusterSize())
	off := first * uint64(clusterSectors)
	if off > math.MaxUint32 {
		return nil, fmt.Errorf("%w: a BAT of %d bytes, it doesn't fit the format", image.ErrLimit, h.BATEnd())
	}
	h.DataOff = uint32(off)
	// The last place must have an entry that can say it.
	if _, ok := h.EntryOf(h.SectorAt(n - 1)); !ok || version == 1 && sectors > math.MaxUint32 {
		return nil, fmt.Errorf("%w: %d bytes, a version %d image with clusters of %d bytes can't map as much", image.ErrLimit, sectors*image.SectorSize, version, h.ClusterSize())
	}
	return h, nil
}

// ParseHeader decodes and checks the head of an image. b holds the first bytes
// of the file (64 are enough), size is the file's, in bytes, and file names it
// in errors. It trusts nothing and allocates nothing that b doesn't bound.
func ParseHeader(file string, b []byte, size int64) (*Header, error) {
	h, err := parseHeader(file, b, size)
	if err != nil {
		return nil, err
	}
	if flaws := h.flaws(file); len(flaws) > 0 {
		return nil, flaws[0]
	}
	return h, nil
}

// parseHeader is ParseHeader without the fields that the rest of the image can
// make up for.
func parseHeader(file string, b []byte, size int64) (*Header, error) {
	bad := func(off int64, class error, what, found, want string) error {
		return &image.FormatError{File: file, Offset: off, What: what, Found: found, Want: want, Class: class}
	}
	if len(b) < HeaderSize || size < HeaderSize {
		n := min(int64(len(b)), size)
		return nil, bad(0, image.ErrNotPloop, "header", fmt.Sprintf("%d bytes", n), "at least 64")
	}
	h := &Header{}
	switch magic := b[:16]; {
	case bytes.Equal(magic, magicV1):
		h.Version = 1
	case bytes.Equal(magic, magicV2):
		h.Version = 2
	default:
		return nil, bad(0, image.ErrNotPloop, "magic", fmt.Sprintf("%q", magic), fmt.Sprintf("%q or %q", magicV1, magicV2))
	}
	le := binary.LittleEndian
	if t := le.Uint32(b[16:]); t != diskType {
		return nil, bad(16, image.ErrCorrupt, "type", fmt.Sprint(t), "2")
	}
	h.Heads = le.Uint32(b[20:])
	h.Cylinders = le.Uint32(b[24:])
	h.ClusterSectors = le.Uint32(b[28:])
	h.BATEntries = le.Uint32(b[32:])
	h.Sectors = le.Uint64(b[36:])
	h.InUse = le.Uint32(b[44:])
	h.DataOff = le.Uint32(b[48:])
	h.Flags = le.Uint32(b[52:])
	h.ExtOff = le.Uint64(b[56:])

	if h.ClusterSectors == 0 {
		return nil, bad(28, image.ErrCorrupt, "cluster size", "0 sectors", "at least 1")
	}
	if h.ClusterSize() > MaxClusterSize {
		return nil, bad(28, image.ErrLimit, "cluster size", fmt.Sprintf("%d sectors", h.ClusterSectors), fmt.Sprintf("at most %d", MaxClusterSize/image.SectorSize))
	}
	if h.BATEntries > MaxBATEntries {
		return nil, bad(32, image.ErrLimit, "number of BAT entries", fmt.Sprint(h.BATEntries), fmt.Sprintf("at most %d", MaxBATEntries))
	}
	if h.Version == 1 && h.Sectors>>32 != 0 {
		return nil, bad(40, image.ErrCorrupt, "high half of the disk size of a version 1 image", fmt.Sprintf("%#x", h.Sectors>>32), "0")
	}
	if h.Sectors == 0 {
		return nil, bad(36, image.ErrCorrupt, "disk size", "0 sectors", "at least 1")
	}
	if most := uint64(h.BATEntries) * uint64(h.ClusterSectors); h.Sectors > most {
		return nil, bad(36, image.ErrCorrupt, "disk size", fmt.Sprintf("%d sectors", h.Sectors), fmt.Sprintf("at most the %d that %d BAT entries can map", most, h.BATEntries))
	}
	if size < h.BATEnd() {
		return nil, bad(size, image.ErrCorrupt, "end of the file", fmt.Sprintf("%d bytes", size), fmt.Sprintf("at least %d for header and BAT", h.BATEnd()))
	}
	if h.Flags&FlagConverting != 0 {
		return nil, bad(52, image.ErrUnsupported, "flags", fmt.Sprintf("%#x: a change of the image's version was interrupted", h.Flags), "finish it with the tool that began it")
	}
	return h, nil
}

// SetEmpty says whether any cluster is allocated. OpenVZ's tool complains of a
// header that says it wrongly.
func (h *Header) SetEmpty(empty bool) {
	h.Flags &^= FlagEmpty
	if empty {
		h.Flags |= FlagEmpty
	}
}

// flaws says what is wrong with those fields that the rest of the image can
// make up for: in_use and data_off.
func (h *Header) flaws(file string) (flaws []*image.FormatError) {
	bad := func(off int64, what, found, want string) {
		flaws = append(flaws, &image.FormatError{File: file, Offset: off, What: what, Found: found, Want: want, Class: image.ErrCorrupt})
	}
	switch h.InUse {
	case 0, InUseDirty, InUseClosed:
	default:
		bad(44, "in_use", fmt.Sprintf("%#x", h.InUse), fmt.Sprintf("0, %#x or %#x", InUseDirty, InUseClosed))
	}
	switch start := int64(h.DataStart()) * image.SectorSize; {
	case h.Version == 2 && h.DataOff == 0:
		bad(48, "data offset of a version 2 image", "0", "at least 1")
	case h.Version == 2 && h.DataOff%h.ClusterSectors != 0:
		bad(48, "data offset", fmt.Sprintf("sector %d", h.DataOff), fmt.Sprintf("a multiple of the cluster size, %d sectors", h.ClusterSectors))
	case start < h.BATEnd():
		bad(48, "data offset", fmt.Sprintf("byte %d", start), fmt.Sprintf("at or past the end of the BAT, %d", h.BATEnd()))
	}
	return flaws
}
