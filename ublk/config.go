package ublk

import (
	"context"
	"fmt"
	"os"
)

// DataPath is how the bytes of a request reach the server.
type DataPath int

const (
	// Auto takes ZeroCopy where the driver has it and Copy elsewhere.
	Auto DataPath = iota
	// Copy has the driver copy between a request's pages and a buffer of ours,
	// one buffer of MaxIO bytes per tag. Every kernel has it.
	Copy
	// ZeroCopy has the driver register a request's pages with the queue's ring
	// (AUTO_BUF_REG, Linux 6.16): transfers go straight between the pages and a
	// file. What needs the bytes themselves reads and writes the pages through
	// /dev/ublkcN (USER_COPY).
	ZeroCopy
)

func (p DataPath) String() string {
	switch p {
	case Auto:
		return "auto"
	case Copy:
		return "copy"
	case ZeroCopy:
		return "zero-copy"
	}
	return fmt.Sprintf("data path %d", int(p))
}

// zeroCopyFeatures is what ZeroCopy needs.
const zeroCopyFeatures = FeatureAutoBufReg | FeatureZeroCopy | FeatureUserCopy

// Recovery is what becomes of a device whose server died.
type Recovery int

const (
	// NoRecovery: the device is removed.
	NoRecovery Recovery = iota
	// RecoverReissue: it waits for a new server, which gets the requests that
	// the dead one held once more (Linux 6.1).
	RecoverReissue
	// RecoverWait: it waits for a new server; requests the dead one held fail.
	RecoverWait
	// RecoverFailIO: it can be recovered; until then all I/O fails (Linux 6.13).
	RecoverFailIO
)

func (r Recovery) features() Feature {
	switch r {
	case RecoverReissue:
		return FeatureUserRecovery | FeatureRecoveryReissue
	case RecoverWait:
		return FeatureUserRecovery
	case RecoverFailIO:
		return FeatureUserRecovery | FeatureRecoveryFailIO
	}
	return 0
}

// Config describes a device to be made. Only Size must be set. Sizes are in
// bytes; block sizes, IOMin, IOOpt and DMAAlign are powers of two.
type Config struct {
	// ID is the number wanted, -1 lets the driver choose. Note that 0 is a number.
	ID int

	Queues int // default 1, cut to the number of possible CPUs
	Depth  int // requests in flight per queue, default 128, at most MaxDepth
	MaxIO  int // largest READ or WRITE, default 1 MiB, at most MaxIOSize

	Size          int64 // a multiple of LogicalBlock
	LogicalBlock  int   // smallest addressable unit, default 512, at most the page size
	PhysicalBlock int   // unit without read-modify-write, default 4096
	IOMin         int   // preferred smallest I/O, default PhysicalBlock
	IOOpt         int   // preferred I/O, default PhysicalBlock
	// ChunkSectors, in 512-byte sectors, keeps every READ and WRITE within a
	// multiple of it; 0 does not. DISCARD and WRITE_ZEROES may still cross.
	ChunkSectors int
	// DMAAlign is what the memory of requests is aligned to at least; set it to the
	// alignment that files opened with O_DIRECT want (512), default 4. Before Linux
	// 6.15 the driver has no such parameter and it stays 4, which does not matter
	// there: on the copy path the buffers are ours and page-aligned.
	DMAAlign int

	ReadOnly      bool
	Rotational    bool
	VolatileCache bool // FLUSH requests come; without it writes are durable when completed
	FUA           bool // WRITEs may ask for their own durability; needs VolatileCache

	// DiscardGranularity switches DISCARD on: the unit worth discarding, 0 for none.
	DiscardGranularity int
	MaxDiscard         int64 // default and limit: nearly 4 GiB
	WriteZeroes        bool
	MaxWriteZeroes     int64 // default and limit: nearly 4 GiB

	// Files is the number of slots in each queue's table of registered files.
	Files int

	DataPath DataPath
	Recovery Recovery
	// Tag is kept by the driver, which does not look at it: a server's mark on its
	// devices, to be found in Info.Tag.
	Tag uint64
	// NoPartScan keeps the kernel from reading a partition table at the start.
	// Before Linux 7.0 it does so all the same.
	NoPartScan bool
	// NoAffinity leaves the queues' threads unpinned.
	NoAffinity bool

	// breakBufReg makes the driver's registration of pages fail for odd tags, to
	// test the fallback.
	breakBufReg bool
}

func powerOfTwo(n int) bool { return n > 0 && n&(n-1) == 0 }

// complete fills defaults in and checks.
func (cfg *Config) complete() error {
	page := os.Getpagesize()
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&cfg.Queues, 1)
	def(&cfg.Depth, 128)
	def(&cfg.MaxIO, 1<<20)
	def(&cfg.LogicalBlock, 512)
	def(&cfg.PhysicalBlock, max(4096, cfg.LogicalBlock))
	def(&cfg.IOMin, cfg.PhysicalBlock)
	def(&cfg.IOOpt, cfg.PhysicalBlock)
	const rangeMax = int64(maxRangeSectors) << sectorShift
	if cfg.MaxDiscard == 0 {
		cfg.MaxDiscard = rangeMax
	}
	if cfg.MaxWriteZeroes == 0 {
		cfg.MaxWriteZeroes = rangeMax
	}
	bad := func(field, format string, args ...any) error {
		return &ConfigError{field, fmt.Sprintf(format, args...)}
	}
	switch {
	case cfg.Queues < 1 || cfg.Queues > MaxQueues:
		return bad("Queues", "%d: 1 to %d", cfg.Queues, MaxQueues)
	case cfg.Depth < 1 || cfg.Depth > MaxDepth:
		return bad("Depth", "%d: 1 to %d", cfg.Depth, MaxDepth)
	case cfg.MaxIO < page || cfg.MaxIO > MaxIOSize || cfg.MaxIO%page != 0:
		return bad("MaxIO", "%d: a multiple of the page size %d, at most %d", cfg.MaxIO, page, MaxIOSize)
	case !powerOfTwo(cfg.LogicalBlock) || cfg.LogicalBlock < 512 || cfg.LogicalBlock > page:
		return bad("LogicalBlock", "%d: a power of two from 512 to the page size %d", cfg.LogicalBlock, page)
	case !powerOfTwo(cfg.PhysicalBlock) || cfg.PhysicalBlock < cfg.LogicalBlock || cfg.PhysicalBlock > 256<<20:
		return bad("PhysicalBlock", "%d: a power of two from LogicalBlock (%d) to 256 MiB", cfg.PhysicalBlock, cfg.LogicalBlock)
	case !powerOfTwo(cfg.IOMin) || cfg.IOMin > 256<<20:
		return bad("IOMin", "%d: a power of two up to 256 MiB", cfg.IOMin)
	case !powerOfTwo(cfg.IOOpt) || cfg.IOOpt > 256<<20:
		return bad("IOOpt", "%d: a power of two up to 256 MiB", cfg.IOOpt)
	case cfg.Size <= 0 || cfg.Size%int64(cfg.LogicalBlock) != 0:
		return bad("Size", "%d: a positive multiple of LogicalBlock (%d)", cfg.Size, cfg.LogicalBlock)
	case cfg.ChunkSectors < 0 || cfg.ChunkSectors%(cfg.LogicalBlock>>sectorShift) != 0:
		return bad("ChunkSectors", "%d: a multiple of LogicalBlock (%d sectors)", cfg.ChunkSectors, cfg.LogicalBlock>>sectorShift)
	case cfg.DMAAlign != 0 && (!powerOfTwo(cfg.DMAAlign) || cfg.DMAAlign > page):
		return bad("DMAAlign", "%d: a power of two up to the page size %d", cfg.DMAAlign, page)
	case cfg.FUA && !cfg.VolatileCache:
		return bad("FUA", "means nothing without VolatileCache")
	case cfg.DiscardGranularity < 0 || cfg.DiscardGranularity%cfg.LogicalBlock != 0:
		return bad("DiscardGranularity", "%d: a multiple of LogicalBlock (%d)", cfg.DiscardGranularity, cfg.LogicalBlock)
	case cfg.MaxDiscard < int64(cfg.LogicalBlock) || cfg.MaxDiscard > rangeMax:
		return bad("MaxDiscard", "%d: from LogicalBlock (%d) to %d", cfg.MaxDiscard, cfg.LogicalBlock, rangeMax)
	case cfg.MaxWriteZeroes < int64(cfg.LogicalBlock) || cfg.MaxWriteZeroes > rangeMax:
		return bad("MaxWriteZeroes", "%d: from LogicalBlock (%d) to %d", cfg.MaxWriteZeroes, cfg.LogicalBlock, rangeMax)
	case cfg.Files < 0 || cfg.Files > 32768:
		return bad("Files", "%d: 0 to 32768 slots", cfg.Files)
	case cfg.DataPath < Auto || cfg.DataPath > ZeroCopy:
		return bad("DataPath", "%d is none", cfg.DataPath)
	case cfg.Recovery < NoRecovery || cfg.Recovery > RecoverFailIO:
		return bad("Recovery", "%d is none", cfg.Recovery)
	}
	return nil
}

// flags chooses the data path and says what to ask ADD_DEV for. What must be had
// and is not offered is a *MissingFeatureError.
func (cfg *Config) flags(ctx context.Context, c *Control) (Feature, error) {
	have, err := c.Features(ctx)
	if err != nil {
		return 0, err
	}
	if cfg.DataPath == Auto {
		cfg.DataPath = Copy
		if have.Has(zeroCopyFeatures) {
			cfg.DataPath = ZeroCopy
		}
	}
	want := FeatureIoctlEncode | cfg.Recovery.features()
	if cfg.DataPath == ZeroCopy {
		want |= zeroCopyFeatures
	}
	if missing := want &^ have; missing != 0 {
		return 0, &MissingFeatureError{Missing: missing}
	}
	// Asked for where it is offered, done without elsewhere.
	optional := FeatureUpdateSize
	if cfg.NoPartScan {
		optional |= FeatureNoPartScan
	}
	return want | optional&have, nil
}

func (cfg *Config) params() Params {
	p := Params{
		Size: cfg.Size, LogicalBlock: cfg.LogicalBlock, PhysicalBlock: cfg.PhysicalBlock, IOMin: cfg.IOMin, IOOpt: cfg.IOOpt,
		MaxIO: cfg.MaxIO, ChunkSectors: cfg.ChunkSectors,
		ReadOnly: cfg.ReadOnly, Rotational: cfg.Rotational, VolatileCache: cfg.VolatileCache, FUA: cfg.FUA,
		DMAAlign: cfg.DMAAlign,
	}
	if cfg.DiscardGranularity > 0 {
		p.DiscardGranularity, p.MaxDiscard = cfg.DiscardGranularity, cfg.MaxDiscard
	}
	if cfg.WriteZeroes {
		p.MaxWriteZeroes = cfg.MaxWriteZeroes
	}
	return p
}
