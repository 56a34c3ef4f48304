package ploop

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"holdfast/ploop/internal/chain"
	"holdfast/ploop/internal/draft"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// ConvertOptions say what to make of an image.
type ConvertOptions struct {
	To Format
	// ClusterSize of a ploop image in bytes; 0: the source's if that is one,
	// otherwise [DefaultClusterSize].
	ClusterSize int64
	// AnyClusterSize is as in [CreateOptions], also for a source's.
	AnyClusterSize bool
	// NoHoles stores clusters whole, zeroes too, and the whole of a raw disk,
	// for software that refuses sparse files (the ploop tool up to 1.15).
	NoHoles bool
	// Damaged, if not nil, has a source copied with bad BAT entries or a wrong data_off:
	// what can't be read becomes zeroes. It is told all that before dst
	// appears.
	Damaged func(*Damage)
	// Progress is told how much of the disk is done, now and then, in bytes;
	// nil: nobody.
	Progress func(done, total int64)
}

// Convert copies the disk in src into a new file dst of another format,
// version or cluster size. What reads as zeroes is not stored. A raw source that
// ends within a sector is padded with zeroes to a whole one. dst must not
// exist; it appears, whole and durable, when Convert succeeds, and not at all
// when it fails or ctx ends it.
func Convert(ctx context.Context, src ImageRef, dst string, o ConvertOptions) error {
	return ConvertStack(ctx, []ImageRef{src}, dst, o)
}

// ConvertStack is Convert for the disk of a whole stack, base first.
func ConvertStack(ctx context.Context, refs []ImageRef, dst string, o ConvertOptions) (err error) {
	v, err := chain.Open(refs, o.Damaged != nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()

	c := &converter{src: v, progress: o.Progress, noHoles: o.NoHoles}
	if o.To != FormatRaw {
		if o.ClusterSize == 0 && !v.Deltas[len(v.Deltas)-1].Ref.Raw {
			o.ClusterSize = v.Cluster
		}
		if c.hdr, err = (CreateOptions{Size: v.Size, ClusterSize: o.ClusterSize, AnyClusterSize: o.AnyClusterSize, Version: int(o.To)}).header(); err != nil {
			return fmt.Errorf("convert to %s: %w", dst, err)
		}
		c.bat = make([]uint32, c.hdr.BATEntries)
	}
	if c.dst, err = draft.New(dst); err != nil {
		return err
	}
	if err := c.run(ctx); err != nil {
		c.dst.Discard()
		return fmt.Errorf("convert to %s: %w", dst, err)
	}
	if o.Damaged != nil {
		o.Damaged(v.Damage())
	}
	return c.dst.Publish()
}

// converter copies one disk. It writes the BAT last: nobody but it sees the
// file before that.
type converter struct {
	src      *chain.Chain
	dst      *draft.Draft
	progress func(done, total int64)
	noHoles  bool

	hdr  *format.Header // of a ploop dst; nil: raw
	bat  []uint32       // in memory, four bytes a cluster
	used uint64         // clusters given out
}

const (
	convertBuffer = 4 << 20
	// convertGrain is the finest that zeroes are left out by, in bytes; a
	// file system's block.
	convertGrain = 4096
)

func (c *converter) run(ctx context.Context) error {
	size := c.src.Size
	if c.hdr != nil {
		if err := beginImage(c.dst, c.hdr, c.noHoles); err != nil {
			return err
		}
	} else if err := c.dst.Truncate(size); err != nil {
		return err
	}
	buf := storage.AlignedBuffer(convertBuffer)
	err := c.src.Extents(func(x Extent) error {
		if c.progress != nil {
			c.progress(x.Start, size)
		}
		if !x.Data {
			if c.noHoles && c.hdr == nil {
				return c.zero(ctx, x)
			}
			return nil
		}
		for off, end := x.Start, x.Start+x.Length; off < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			// Up to a multiple of the buffer, so that grains are aligned.
			b := buf[:min(end, off/convertBuffer*convertBuffer+convertBuffer)-off]
			if err := c.src.ReadAt(b, off); err != nil {
				return err
			}
			if err := c.store(b, off); err != nil {
				return err
			}
			off += int64(len(b))
			if c.progress != nil {
				c.progress(off, size)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if c.hdr != nil {
		if err := c.writeBAT(); err != nil {
			return err
		}
	}
	if c.progress != nil {
		c.progress(size, size)
	}
	return nil
}

// zero writes an extent's zeroes.
func (c *converter) zero(ctx context.Context, x Extent) error {
	for off, end := x.Start, x.Start+x.Length; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(convertBuffer, end-off)
		if err := c.dst.Zero(off, n); err != nil {
			return err
		}
		off += n
		if c.progress != nil {
			c.progress(off, c.src.Size)
		}
	}
	return nil
}

// store writes what isn't zero of b, which is at off of the disk.
func (c *converter) store(b []byte, off int64) error {
	lo, to := 0, int64(0) // b[lo:p] waits to be written at to
	flush := func(p int) error {
		if lo == p {
			return nil
		}
		_, err := c.dst.WriteAt(b[lo:p], to)
		lo = p
		return err
	}
	for p, q := 0, 0; p < len(b); p = q {
		at := off + int64(p)
		n := convertGrain - at%convertGrain
		if c.hdr != nil {
			n = min(n, c.hdr.ClusterSize()-at%c.hdr.ClusterSize())
		}
		q = min(p+int(n), len(b))
		if storage.AllZero(b[p:q]) && !(c.noHoles && c.hdr == nil) {
			if err := flush(p); err != nil {
				return err
			}
			lo = q
			continue
		}
		if c.hdr != nil {
			var err error
			if at, err = c.place(at); err != nil {
				return err
			}
		}
		if at != to+int64(p-lo) {
			if err := flush(p); err != nil {
				return err
			}
		}
		if lo == p {
			to = at
		}
	}
	return flush(len(b))
}

// place gives the place in dst for a byte of the disk, allocating its cluster
// if that hasn't one.
func (c *converter) place(off int64) (int64, error) {
	i := off / c.hdr.ClusterSize()
	fresh := c.bat[i] == 0
	if fresh {
		c.bat[i], _ = c.hdr.EntryOf(c.hdr.SectorAt(c.used)) // NewHeader saw that all fit
		c.used++
	}
	at := int64(c.hdr.SectorOf(c.bat[i])) * SectorSize
	if fresh && c.noHoles {
		if err := c.dst.Zero(at, c.hdr.ClusterSize()); err != nil {
			return 0, err
		}
	}
	return at + off%c.hdr.ClusterSize(), nil
}

// writeBAT ends a ploop image: its last cluster whole, and the table.
func (c *converter) writeBAT() error {
	if err := c.dst.Truncate(int64(c.hdr.SectorAt(c.used)) * SectorSize); err != nil {
		return err
	}
	c.hdr.SetEmpty(c.used == 0)
	if _, err := c.dst.WriteAt(c.hdr.Encode(), 0); err != nil {
		return err
	}
	return writeBAT(c.dst, c.bat)
}

// writeBAT writes a table behind the header.
func writeBAT(f io.WriterAt, bat []uint32) error {
	b := make([]byte, 64<<10)
	off := int64(format.HeaderSize)
	for len(bat) > 0 {
		n := min(len(bat), len(b)/format.BATEntrySize)
		for i, v := range bat[:n] {
			binary.LittleEndian.PutUint32(b[i*format.BATEntrySize:], v)
		}
		if !storage.AllZero(b[:n*format.BATEntrySize]) { // as is what the file has there now
			if _, err := f.WriteAt(b[:n*format.BATEntrySize], off); err != nil {
				return err
			}
		}
		bat, off = bat[n:], off+int64(n*format.BATEntrySize)
	}
	return nil
}
