package device

import (
	"sync"

	"holdfast/ploop"
)

// The slow way's buffers, by size, for requests whose pages aren't in our memory. As many are
// in use as there are workers at most, and what is in none's use goes back to the system at
// the garbage collector's leisure. All of a device's take at most
// (mostWorkers[reading]+mostWorkers[changing]) * maxIO bytes.
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
