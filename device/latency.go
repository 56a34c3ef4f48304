package device

import (
	"sync/atomic"
	"time"

	"holdfast/ublk"
)

// LatencySample says that one request in so many is timed: the fast path reads
// no clock for the others.
const LatencySample = 64

// LatencyBounds are the upper bounds of the histograms' buckets, in seconds.
var LatencyBounds = []float64{50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300}

// opNames are the words for operations in JSON and metrics, by ublk.Op.
var opNames = [...]string{ublk.OpRead: "read", ublk.OpWrite: "write", ublk.OpFlush: "flush", ublk.OpDiscard: "discard", ublk.OpWriteZeroes: "write_zeroes"}

// histogram is one operation's, of one queue.
type histogram struct {
	buckets [21]atomic.Uint64 // len(LatencyBounds)+1
	nanos   atomic.Uint64
}

func (h *histogram) add(d time.Duration) {
	i := 0
	for s := d.Seconds(); i < len(LatencyBounds) && s > LatencyBounds[i]; i++ {
	}
	h.buckets[i].Add(1)
	h.nanos.Add(uint64(max(d, 0)))
}

// latency adds the queues' histograms up.
func (d *Device) latency() []Latency {
	var out []Latency
	for op, name := range opNames {
		if name == "" {
			continue
		}
		l := Latency{Op: name, Buckets: make([]uint64, len(LatencyBounds)+1)}
		for q := range d.queues {
			h := &d.queues[q].stats.latency[op]
			for i := range l.Buckets {
				n := h.buckets[i].Load()
				l.Buckets[i] += n
				l.Count += n
			}
			l.Sum += time.Duration(h.nanos.Load()).Seconds()
		}
		out = append(out, l)
	}
	return out
}
