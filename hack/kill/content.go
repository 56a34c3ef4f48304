package kill

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Sector is the unit of the model, in bytes: the smallest piece that a disk
// writes wholly or not at all.
const Sector = 512

const contentMagic = 0x4c4c494b5f504d48

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errTorn = errors.New("torn")

// put writes what operation op of the model with this seed gives sector i. The
// layout: magic, seed, sector, operation, filling, checksum of all before.
func put(p []byte, seed, i uint64, op uint32) {
	le := binary.LittleEndian
	le.PutUint64(p, contentMagic)
	le.PutUint64(p[8:], seed)
	le.PutUint64(p[16:], i)
	le.PutUint64(p[24:], uint64(op))
	x := seed ^ i*0x9e3779b97f4a7c15 ^ uint64(op)<<40
	for k := 32; k < Sector-8; k += 8 {
		x += 0x9e3779b97f4a7c15
		le.PutUint64(p[k:], x)
	}
	le.PutUint64(p[Sector-8:], uint64(crc32.Checksum(p[:Sector-8], castagnoli)))
}

// zeroes says whether a sector is nothing but zeroes.
func zeroes(p []byte) bool {
	var x uint64
	for k := 0; k < Sector; k += 8 {
		x |= binary.LittleEndian.Uint64(p[k:])
	}
	return x == 0
}

// get tells which operation wrote sector i, 0 for zeroes.
func get(p []byte, seed, i uint64) (op uint32, err error) {
	le := binary.LittleEndian
	switch {
	case zeroes(p):
		return 0, nil
	case le.Uint64(p) == 0:
		return 0, fmt.Errorf("%w: zeroes at its head only", errTorn)
	case le.Uint64(p) != contentMagic:
		return 0, fmt.Errorf("garbage: %x…", p[:16])
	case le.Uint64(p[Sector-8:]) != uint64(crc32.Checksum(p[:Sector-8], castagnoli)):
		return 0, fmt.Errorf("%w: operation %d of sector %d, with a wrong checksum", errTorn, le.Uint64(p[24:]), le.Uint64(p[16:]))
	case le.Uint64(p[8:]) != seed:
		return 0, fmt.Errorf("another disk's: seed %#x", le.Uint64(p[8:]))
	case le.Uint64(p[16:]) != i:
		return 0, fmt.Errorf("sector %d's, written by operation %d", le.Uint64(p[16:]), le.Uint64(p[24:]))
	}
	return uint32(le.Uint64(p[24:])), nil
}
