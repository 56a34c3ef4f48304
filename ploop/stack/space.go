package stack

import (
	"errors"
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
	mu   lock.Mutex
	free bitset.Set // below next and not in use; their content is unknown
	next uint64     // first position that no entry ever had
	have uint64     // the file has room for this many positions
	// end is have, or what it may become by a growth under way, for those who
	// can't wait for mu.
	end atomic.Uint64

	frozen atomic.Bool // what is free below next isn't all known

	// size is where the file ends at least, in bytes, unless somebody cuts it
	// off, and reach where it may end by this stack's own doing: by a growth
	// that failed half way. Both only rise.
	size, reach atomic.Int64
	foreign     atomic.Bool // what lies behind was logged
	cut         atomic.Bool // the file was seen to be shorter

	step uint64 // by how many positions to grow; 0: as many as may be. See grow
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

// allocate takes a free cluster of the top's file. clean says that it reads as
// zeroes.
func (p *space) allocate(s *Stack) (pos uint64, clean bool, err error) {
	if err := p.intact(s); err != nil {
		return 0, false, err
	}
	if err := p.mu.Lock(s.life.over()); err != nil { // a growth may hang
		return 0, false, err
	}
	defer p.mu.Unlock()
	if pos, ok := p.free.First(); ok {
		p.free.Remove(pos)
		return pos, false, nil
	}
	if p.next == p.have {
		if err := p.grow(s); err != nil {
			return 0, false, err
		}
	}
	p.next++
	return p.next - 1, true, nil
}

// grow adds room to the file, in large steps while the file system has it and
// down to one cluster when it is nearly full.
func (p *space) grow(s *Stack) error {
	h := &s.top.Header
	if err := p.skipForeign(s); err != nil {
		return err
	}
	from := int64(h.SectorAt(p.have)) * image.SectorSize
	// No more than the disk can still want.
	want := s.clusters - min(uint64(s.allocated.Load()), s.clusters-1)
	n := min(max(growStep/uint64(s.cluster), 1), want)
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
		err := s.top.File.Allocate(from, int64(n)*s.cluster)
		if err == nil {
			p.have, p.step = p.have+n, 2*n
			p.expect(from + int64(n)*s.cluster)
			return p.guard(s)
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

// giveBack makes a position free again. It is free only from the next open on if
// the stack is superseded while a growth hangs.
func (p *space) giveBack(s *Stack, pos uint64) {
	if p.mu.Lock(s.life.over()) == nil {
		p.free.Add(pos)
		p.mu.Unlock()
	}
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
