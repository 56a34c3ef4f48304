// Package bitset has a set of numbers that costs memory only where it has members.
package bitset

import (
	"math/bits"
)

// Set is a set of small integers that costs memory only where it has
// members: 512-byte pieces of 4096 bits.
type Set struct {
	piece map[uint64]*[64]uint64
	N     uint64 // members
	low   uint64 // no member is in a piece below this one
}

// Has says whether i is a member.
func (b *Set) Has(i uint64) bool {
	p := b.piece[i>>12]
	return p != nil && p[i>>6&63]>>(i&63)&1 != 0
}

// Add reports whether i is new.
func (b *Set) Add(i uint64) bool {
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
	b.N++
	b.low = min(b.low, i>>12)
	return true
}

// Remove reports whether i was a member.
func (b *Set) Remove(i uint64) bool {
	if !b.Has(i) {
		return false
	}
	p := b.piece[i>>12]
	p[i>>6&63] &^= 1 << (i & 63)
	b.N--
	if *p == [64]uint64{} {
		delete(b.piece, i>>12)
	}
	return true
}

// First gives the lowest member.
func (b *Set) First() (uint64, bool) {
	if b.N == 0 {
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

// Clone copies the members below end.
func (b *Set) Clone(end uint64) Set {
	c := Set{}
	for at, p := range b.piece {
		for w, v := range p {
			for ; v != 0; v &= v - 1 {
				if i := at<<12 | uint64(w)<<6 | uint64(bits.TrailingZeros64(v)); i < end {
					c.Add(i)
				}
			}
		}
	}
	c.low = 0
	return c
}
