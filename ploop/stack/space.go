package stack

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/bitset"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/lock"
)

// space is the top file's room for clusters, by position (see
// format.Header.PositionOf).
type space struct {
	mu   sync.Mutex // for an instant
	free bitset.Set // below next and not in use; their content is unknown
	next uint64     // first position that no entry ever had
	have uint64     // the file has room for this many positions
	// end is have, or what it may become by a growth under way.
	end atomic.Uint64

	frozen atomic.Bool // what is free below next isn't all known

	// size is where the file ends at least, in bytes, unless somebody cuts it
	// off, and reach where it may end by this stack's own doing: by a growth
	// that failed half way. Both only rise.
	size, reach atomic.Int64
	foreign     atomic.Bool // what lies behind was logged
	cut         atomic.Bool // the file was seen to be shorter

	growing lock.Mutex // who holds it may hang in the storage
	step    uint64     // by how many positions to grow; 0: as many as may be. See grow

	zeroes zeroes
	ahead  ahead
}

// A place is a cluster of the top's file that nobody has.
type place struct {
	pos     uint64
	zero    bool // reads as zeroes
	lasting bool // and does so after a power cut, for what of its data isn't durable
}

// load takes the positions in use and finds the gaps between them.
func (p *space) load(used format.Positions) {
	for w := len(used) - 1; w >= 0; w-- {
		if used[w] == 0 {
			continue
		}
		for b := uint64(w)*64 + 63; ; b-- {
			if used.Has(b) {
				p.next = b + 1
				break
			}
		}
		break
	}
	p.have = p.next
	p.end.Store(p.have)
	for w := range (p.next + 63) / 64 {
		if used[w] == ^uint64(0) {
			continue
		}
		for b := w * 64; b < min(w*64+64, p.next); b++ {
			if !used.Has(b) {
				p.free.Add(b)
			}
		}
	}
}

// freeze gives up what is free below n: new clusters come from behind it.
func (p *space) freeze(n uint64) {
	p.free = bitset.Set{}
	p.next, p.have = n, n
	p.frozen.Store(true)
	p.end.Store(n)
}

// growStep is how much a file grows at once, as dm-ploop's does. Close gives
// back what wasn't used.
const growStep = 128 << 20

// stepOf is growStep in clusters.
func (s *Stack) stepOf() uint64 {
	if s.opts.step > 0 {
		return s.opts.step
	}
	return max(growStep/uint64(s.cluster), 1)
}

// allocate takes a free cluster of the top's file.
func (p *space) allocate(s *Stack) (place, error) {
	if err := p.intact(s); err != nil {
		return place{}, err
	}
	for {
		at, ok := p.take(s)
		if ok {
			return at, nil
		}
		if err := p.more(s); err != nil {
			return place{}, err
		}
	}
}

// take takes a cluster that there is room for.
func (p *space) take(s *Stack) (at place, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pos, ok := p.free.First(); ok {
		p.free.Remove(pos)
		return place{pos: pos}, true
	}
	if p.next == p.have {
		return place{}, false
	}
	at = place{pos: p.next, zero: true, lasting: p.zeroes.last(p.next) || s.opts.hasty}
	p.next++
	p.ahead.see(s)
	return at, true
}

// more sees to it that there is room.
func (p *space) more(s *Stack) error {
	if err := p.growing.Lock(s.life.over()); err != nil { // a growth may hang
		return err
	}
	defer p.growing.Unlock()
	if p.left() > 0 {
		return nil
	}
	return p.grow(s)
}

// left is how many clusters the room has yet that were never in use.
func (p *space) left() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.have - p.next
}

// grow adds room to the file, in large steps while the file system has it and
// down to one cluster when it is nearly full. The caller holds p.growing, and so
// nobody else changes p.have; what is left of the room may be taken meanwhile.
func (p *space) grow(s *Stack) error {
	h := &s.top.Header
	if err := p.skipForeign(s); err != nil {
		return err
	}
	from := int64(h.SectorAt(p.have)) * image.SectorSize
	n := min(s.stepOf(), max(p.wanted(s), 1))
	if p.step > 0 {
		n = min(n, p.step)
	}
	for n > 1 {
		if _, ok := h.EntryOf(h.SectorAt(p.have + n - 1)); ok {
			break
		}
		n /= 2
	}
	if _, ok := h.EntryOf(h.SectorAt(p.have)); !ok {
		return s.top.IOError("allocate", from, unix.EFBIG)
	}
	// Whoever supersedes this stack either sees the new end or keeps it from
	// being used.
	p.end.Store(p.have + n)
	if err := s.life.beginStructure(); err != nil {
		return err
	}
	defer s.life.endStructure()
	raise(&p.reach, from+int64(n+1)*s.cluster) // with the guard
	for ; ; n /= 2 {
		lasting, err := s.top.File.Allocate(from, int64(n)*s.cluster)
		if err == nil {
			p.step = 2 * n
			p.expect(from + int64(n)*s.cluster)
			p.zeroes.grown(p.have+n, lasting)
			err := p.guard(s, p.have+n)
			p.mu.Lock()
			p.have += n
			p.mu.Unlock()
			return err
		}
		full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
		if full {
			// Whoever tries again asks a full file system once, and not for every step.
			p.step = max(n/2, 1)
		}
		if n == 1 || !full {
			return s.top.IOError("allocate", from, err)
		}
	}
}

// wanted is how many clusters the disk may still want, beside those that there is room for.
func (p *space) wanted(s *Stack) uint64 {
	return s.clusters - min(uint64(s.allocated.Load())+p.left(), s.clusters)
}

// giveBack makes a position free again.
func (p *space) giveBack(pos uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free.Add(pos)
}

// usedEnd is the first position behind the last one in use.
func (p *space) usedEnd() uint64 {
	end := p.next
	for end > 0 && p.free.Has(end-1) {
		end--
	}
	return end
}

// usedEnd is space.usedEnd for the whole stack, whose index is durable and
// doesn't change any more.
func (s *Stack) usedEnd() (end uint64) {
	if !s.space.frozen.Load() || s.space.foreign.Load() {
		return s.space.usedEnd()
	}
	for i := range s.clusters {
		if e := s.table.Load(i); s.inTop(e) {
			end = max(end, s.top.Header.PositionOf(uint64(e.Sector()))+1)
		}
	}
	return end
}
