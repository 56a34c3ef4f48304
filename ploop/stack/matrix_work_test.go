package stack

import (
	"bytes"
	"fmt"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

func (x *matrix) restart() error {
	x.turns++
	x.down = false
	switch x.resume {
	case "the storage is back":
		return nil
	case "the same files, opened anew":
	default:
		w := newSimWorld()
		for name, f := range x.w.files {
			b := f.now
			if x.resume == "copies without what failed" {
				b = bytes.Clone(f.durable)
				for _, op := range f.pending {
					if op.done && !op.failed {
						b = op.apply(b, all)
					}
				}
			}
			w.add(name, b)
		}
		w.fault = x.fault
		x.w = w
	}
	return x.replace()
}

// replace has the stack succeeded by one on what x.w has, with all files
// opened anew, and tries again when that fails.
func (x *matrix) replace() error {
	c := Succession{Refs: x.refs, Drained: true}
	for range x.refs {
		c.Reopen = append(c.Reopen, true)
	}
	for try := 0; ; try++ {
		h, err := x.s.BeginHandover()
		if err != nil {
			return err
		}
		next, err := h.Prepare(c)
		if err == nil {
			if err := h.Commit(); err != nil {
				return err
			}
			x.s, x.r = next, next.NewReader()
			return nil
		}
		if err := h.Abort(); err != nil {
			return err
		}
		if err := x.failed(err); err != nil {
			return fmt.Errorf("succession: %w", err)
		}
		if try == 10 {
			return fmt.Errorf("succession: still after ten attempts: %w", err)
		}
		x.down = false
	}
}

func (x *matrix) write(first, n int64) error {
	p := x.stamp(first, n)
	err := x.do(func() error { _, err := x.s.WriteAt(p, first*image.SectorSize); return err })
	if err == nil {
		copy(x.disk[first*image.SectorSize:], p)
	}
	return err
}

// fast writes as a device's queues do.
func (x *matrix) fast(first, n int64) error {
	p := x.stamp(first, n)
	err := x.do(func() error {
		at := x.r.Locate(first*image.SectorSize, int(n)*image.SectorSize, true)
		if at.Where != Direct {
			_, err := x.s.WriteAt(p, first*image.SectorSize)
			return err
		}
		defer x.r.Leave(at.Token)
		return x.s.deltas[at.Level].Write(p, at.Offset)
	})
	if err == nil {
		copy(x.disk[first*image.SectorSize:], p)
	}
	return err
}

func (x *matrix) zeroes(first, n int64, keep bool) error {
	err := x.do(func() error { return x.s.WriteZeroes(first*image.SectorSize, n*image.SectorSize, keep) })
	if err == nil {
		clear(x.disk[first*image.SectorSize : (first+n)*image.SectorSize])
	}
	return err
}

// discard takes over what it left, which is zeroes or what was.
func (x *matrix) discard(first, n int64) error {
	if err := x.do(func() error { return x.s.Discard(first*image.SectorSize, n*image.SectorSize) }); err != nil {
		return err
	}
	p := make([]byte, n*image.SectorSize)
	if err := x.do(func() error { _, err := x.s.ReadAt(p, first*image.SectorSize); return err }); err != nil {
		return err
	}
	was := x.disk[first*image.SectorSize : (first+n)*image.SectorSize]
	for at := 0; at < len(p); at += image.SectorSize {
		if now := p[at : at+image.SectorSize]; !storage.AllZero(now) && !bytes.Equal(now, was[at:at+image.SectorSize]) {
			return fmt.Errorf("%w: sector %d after a discard", errWrong, first+int64(at/image.SectorSize))
		}
	}
	copy(was, p)
	return nil
}

func (x *matrix) flush() error { return x.do(func() error { return x.s.Flush() }) }

func (x *matrix) fastFlush() error {
	return x.do(func() error {
		return ringFlush(x.s)
	})
}

// compare reads the disk. A few of its reads may fail; the rest would be more
// of the same.
func (x *matrix) compare() error {
	p := make([]byte, len(x.disk))
	const some = 12 * mc * image.SectorSize
	if err := x.do(func() error { _, err := x.s.ReadAt(p[:some], 0); return err }); err != nil {
		return err
	}
	was := x.w.fault
	x.w.fault = nil
	defer func() { x.w.fault = was }()
	if _, err := x.s.ReadAt(p[some:], some); err != nil {
		return err
	}
	return x.same(p)
}

func (x *matrix) same(p []byte) error {
	for at := 0; at < len(p); at += image.SectorSize {
		if !bytes.Equal(p[at:at+image.SectorSize], x.disk[at:at+image.SectorSize]) {
			v, _ := stamped(p[at:], at/image.SectorSize)
			want, _ := stamped(x.disk[at:], at/image.SectorSize)
			return fmt.Errorf("%w: sector %d is version %d, acknowledged was %d", errWrong, at/image.SectorSize, v, want)
		}
	}
	return nil
}

// full takes the room that the file has ahead, so that the next cluster grows it.
func (x *matrix) full() error {
	x.s.space.have = x.s.space.next
	return nil
}

func (x *matrix) work() error {
	steps := []func() error{
		func() error { return x.write(0, mc) },             // a whole cluster
		func() error { return x.write(mc+2, 1) },           // a part, over what lies below
		func() error { return x.write(1, 2) },              // in place
		func() error { return x.write(3*mc, 3*mc+2) },      // several
		func() error { return x.write(110*mc, 5*mc) },      // over two sectors of the index
		func() error { return x.fast(110*mc+1, 2) },        // in place, by the fast way
		func() error { return x.zeroes(50*mc, mc, false) }, // nowhere stored, or below
		x.flush,
		func() error { return x.discard(0, 2*mc) },
		func() error { return x.write(60*mc+1, 1) }, // in a place that was used
		func() error { return x.write(61*mc+1, mc) },
		func() error { return x.zeroes(61*mc+2, 1, true) },
		func() error { return x.zeroes(113*mc, mc, true) },
		func() error { return x.zeroes(112*mc, mc, false) },
		func() error { return x.discard(110*mc+1, 2) },
		x.full,
		func() error { return x.write(70*mc, 2*mc) },
		func() error { return x.write(71*mc, mc) },
		x.fastFlush,
		func() error { return x.write(72*mc, 2) },
		x.flush, // as FUA
		x.replace,
		x.compare,
		func() error { return x.write(matrixSectors-3, 3) }, // the disk's end, and a raw base's
		func() error { return x.write(mc, 3*mc) },
		x.full,
		func() error { return x.zeroes(73*mc+1, 2, true) },
		func() error { return x.fast(mc, mc) },
		func() error { return x.discard(0, matrixSectors) },
		func() error { return x.write(5*mc, mc+2) },
		func() error { return x.write(111*mc, mc+2) },
		x.compare,
		x.flush,
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
		if x.lies {
			if err := x.compare(); err != nil {
				return fmt.Errorf("after step %d: %w", i, err)
			}
		}
	}
	return nil
}
