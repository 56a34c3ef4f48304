package ploop

import (
	"math/bits"
)

// bitset is a set of small integers that costs memory only where it has
// members: 512-byte pieces of 4096 bits.
type bitset struct {
	piece map[uint64]*[64]uint64
	n     uint64 // members
	low   uint64 // no member is in a piece below this one
}

func (b *bitset) has(i uint64) bool {
	p := b.piece[i>>12]
	return p != nil && p[i>>6&63]>>(i&63)&1 != 0
}

// add reports whether i is new.
func (b *bitset) add(i uint64) bool {
	if b.piece == nil {
		b.piece = make(map[uint64]*[64]uint64)
	}
	p := b.piece[i>>12]
	if p == nil {
		p = new([64]uint64)
		b.piece[i>>12] = p
	}
	w, bit := &p[i>>6&63], uint64(1)<<(i&63)
	if *w&bit != 0 {
		return false
	}
	*w |= bit
	b.n++
	b.low = min(b.low, i>>12)
	return true
}

// remove reports whether i was a member.
func (b *bitset) remove(i uint64) bool {
	if !b.has(i) {
		return false
	}
	p := b.piece[i>>12]
	p[i>>6&63] &^= 1 << (i & 63)
	b.n--
	if *p == [64]uint64{} {
		delete(b.piece, i>>12)
	}
	return true
}

// first gives the lowest member.
func (b *bitset) first() (uint64, bool) {
	if b.n == 0 {
		return 0, false
	}
	for ; ; b.low++ {
		p := b.piece[b.low]
		if p == nil {
			continue
		}
		for w, v := range p {
			if v != 0 {
				return b.low<<12 | uint64(w)<<6 | uint64(bits.TrailingZeros64(v)), true
			}
		}
	}
}

// clone copies the members below end.
func (b *bitset) clone(end uint64) bitset {
	c := bitset{}
	for at, p := range b.piece {
		for w, v := range p {
			for ; v != 0; v &= v - 1 {
				if i := at<<12 | uint64(w)<<6 | uint64(bits.TrailingZeros64(v)); i < end {
					c.add(i)
				}
			}
		}
	}
	c.low = 0
	return c
}
