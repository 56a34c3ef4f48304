package powercut

import (
	"math/rand/v2"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"holdfast/ublk"
)

const sector = 512

// disk is a block device in memory that knows what is durable.
type disk struct {
	size int64

	mu      sync.Mutex
	now     []byte    // what reads see
	durable []byte    // what survives for certain
	pending []*change // what may, in the order in which it was begun
}

// change is a write that isn't durable.
type change struct {
	off  int64
	data []byte
	done bool
}

var _ ublk.Handler = (*disk)(nil)

func newDisk(size int64) *disk {
	d := &disk{size: size}
	for _, p := range []*[]byte{&d.now, &d.durable} {
		b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			panic(err)
		}
		for i := range b {
			b[i] = 0xee
		}
		*p = b
	}
	return d
}

func (d *disk) free() {
	unix.Munmap(d.now)
	unix.Munmap(d.durable)
}

// Begin gives each request a goroutine: the way is not to be fast.
func (d *disk) Begin(r *ublk.Request) { go func() { r.Complete(d.do(r)) }() }

// Transferred is not called.
func (d *disk) Transferred(*ublk.Request, unix.Errno) {}

func (d *disk) do(r *ublk.Request) unix.Errno {
	switch r.Op() {
	case ublk.OpRead:
		p := make([]byte, r.Len())
		d.mu.Lock()
		copy(p, d.now[r.Offset():])
		d.mu.Unlock()
		if r.WritePayload(p, 0) != nil {
			return unix.EIO
		}
	case ublk.OpWrite:
		c := &change{off: r.Offset(), data: make([]byte, r.Len())}
		if r.ReadPayload(c.data, 0) != nil {
			return unix.EIO
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.pending = append(d.pending, c)
		copy(d.now[c.off:], c.data)
		c.done = true
		if r.FUA() {
			// What was written there before is over as well.
			d.settle(func(o *change) bool { return o.off < c.off+int64(len(c.data)) && c.off < o.off+int64(len(o.data)) })
		}
	case ublk.OpFlush:
		d.mu.Lock()
		defer d.mu.Unlock()
		d.settle(func(o *change) bool { return o.done })
	default:
		return unix.EOPNOTSUPP
	}
	return 0
}

// settle makes changes durable.
func (d *disk) settle(which func(*change) bool) {
	d.pending = slices.DeleteFunc(d.pending, func(c *change) bool {
		is := which(c)
		if is {
			copy(d.durable[c.off:], c.data)
		}
		return is
	})
}

// cut writes what a power cut may leave to a file; unit is what isn't torn, in bytes.
func (d *disk) cut(rng *rand.Rand, path string, unit int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(d.durable, 0); err != nil {
		return err
	}
	bias := rng.Float64() // from nothing to nearly everything
	for _, c := range d.pending {
		whole, keep := rng.IntN(2) == 0, rng.Float64() < bias
		for at := 0; at < len(c.data); at += unit {
			if !whole {
				keep = rng.Float64() < bias
			}
			if keep {
				if _, err := f.WriteAt(c.data[at:min(at+unit, len(c.data))], c.off+int64(at)); err != nil {
					return err
				}
			}
		}
	}
	return f.Close()
}
