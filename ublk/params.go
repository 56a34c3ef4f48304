package ublk

import (
	"math/bits"
	"unsafe"
)

// Params are a block device's properties, sizes in bytes. SET_PARAMS takes them
// before the start; see Config for what each means.
type Params struct {
	Size          int64
	LogicalBlock  int
	PhysicalBlock int
	IOMin         int
	IOOpt         int
	MaxIO         int
	ChunkSectors  int // in 512-byte sectors: no READ or WRITE crosses a multiple

	ReadOnly      bool
	Rotational    bool
	VolatileCache bool
	FUA           bool

	DiscardGranularity int
	MaxDiscard         int64
	MaxWriteZeroes     int64

	DMAAlign int

	// Device numbers, answered by GetParams only; the disk's are 0 before the start.
	CharMajor, CharMinor, DiskMajor, DiskMinor uint32
}

// shift is the exponent of a power of two.
func shift(n int) uint8 { return uint8(bits.TrailingZeros(uint(n))) }

func flag(b bool, bit uint32) uint32 {
	if b {
		return bit
	}
	return 0
}

// raw converts to the driver's form. The sizes were checked by Config.params.
func (p *Params) raw() *params {
	r := &params{
		len:   uint32(unsafe.Sizeof(params{})),
		types: paramTypeBasic,
		basic: paramBasic{
			attrs: flag(p.ReadOnly, attrReadOnly) | flag(p.Rotational, attrRotational) |
				flag(p.VolatileCache, attrVolatileCache) | flag(p.FUA, attrFUA),
			logicalBSShift:  shift(p.LogicalBlock),
			physicalBSShift: shift(p.PhysicalBlock),
			ioMinShift:      shift(p.IOMin),
			ioOptShift:      shift(p.IOOpt),
			maxSectors:      uint32(p.MaxIO >> sectorShift),
			chunkSectors:    uint32(p.ChunkSectors),
			devSectors:      uint64(p.Size >> sectorShift),
		},
	}
	if p.MaxDiscard > 0 || p.MaxWriteZeroes > 0 {
		r.types |= paramTypeDiscard
		r.discard = paramDiscard{
			granularity:           uint32(max(p.DiscardGranularity, p.LogicalBlock)),
			maxDiscardSectors:     uint32(min(p.MaxDiscard>>sectorShift, maxRangeSectors)),
			maxWriteZeroesSectors: uint32(min(p.MaxWriteZeroes>>sectorShift, maxRangeSectors)),
			maxDiscardSegments:    1,
		}
	}
	if p.DMAAlign > 0 {
		r.types |= paramTypeDMAAlign
		r.dma.alignment = uint32(p.DMAAlign - 1)
	}
	return r
}

func (r *params) public() Params {
	b := &r.basic
	p := Params{
		Size:          int64(b.devSectors) << sectorShift,
		LogicalBlock:  1 << b.logicalBSShift,
		PhysicalBlock: 1 << b.physicalBSShift,
		IOMin:         1 << b.ioMinShift,
		IOOpt:         1 << b.ioOptShift,
		MaxIO:         int(b.maxSectors) << sectorShift,
		ChunkSectors:  int(b.chunkSectors),
		ReadOnly:      b.attrs&attrReadOnly != 0,
		Rotational:    b.attrs&attrRotational != 0,
		VolatileCache: b.attrs&attrVolatileCache != 0,
		FUA:           b.attrs&attrFUA != 0,
		CharMajor:     r.devt.charMajor,
		CharMinor:     r.devt.charMinor,
		DiskMajor:     r.devt.diskMajor,
		DiskMinor:     r.devt.diskMinor,
	}
	if r.types&paramTypeDiscard != 0 {
		p.DiscardGranularity = int(r.discard.granularity)
		p.MaxDiscard = int64(r.discard.maxDiscardSectors) << sectorShift
		p.MaxWriteZeroes = int64(r.discard.maxWriteZeroesSectors) << sectorShift
	}
	if r.types&paramTypeDMAAlign != 0 {
		p.DMAAlign = int(r.dma.alignment) + 1
	}
	return p
}
