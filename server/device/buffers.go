package device

import (
	"sync"

	"holdfast/ploop"
)

// The slow way's buffers, by size, for requests whose pages aren't in our memory. As many are
// in use as there are workers at most, and what nobody uses goes back to the system at
// the garbage collector's leisure. A device's take at most
// (mostWorkers[reading]+mostWorkers[changing]) * maxIO bytes, 48 MiB, and as much again where
// requests lie askew to the blocks of the storage; to that come 256 KiB for each change that
// copies a cluster up (package ploop), 16 MiB.
var (
	bufferSizes = [...]int{4 << 10, 64 << 10, maxIO}
	buffers     [len(bufferSizes)]sync.Pool
)

// buffer gives n bytes, at most maxIO, that direct I/O takes, and what to call in the end.
func buffer(n int) ([]byte, func()) {
	for i, size := range bufferSizes {
		if n > size {
			continue
		}
		b, _ := buffers[i].Get().(*[]byte)
		if b == nil {
			p := ploop.AlignedBuffer(size)
			b = &p
		}
		return (*b)[:n], func() { buffers[i].Put(b) }
	}
	// The driver of a device that another server made may send larger ones.
	return ploop.AlignedBuffer(n), func() {}
}
