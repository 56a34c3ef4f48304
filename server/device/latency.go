package device

import (
	"sync/atomic"
	"time"

	"holdfast/api"
	"holdfast/ublk"
)

// opNames are the words for operations in JSON and metrics, by ublk.Op.
var opNames = [...]string{ublk.OpRead: "read", ublk.OpWrite: "write", ublk.OpFlush: "flush", ublk.OpDiscard: "discard", ublk.OpWriteZeroes: "write_zeroes"}

// histogram is one operation's, of one queue.
type histogram struct {
	buckets [21]atomic.Uint64 // len(LatencyBounds)+1
	nanos   atomic.Uint64
}

func (h *histogram) add(d time.Duration) {
	i := 0
	for s := d.Seconds(); i < len(api.LatencyBounds) && s > api.LatencyBounds[i]; i++ {
	}
	h.buckets[i].Add(1)
	h.nanos.Add(uint64(max(d, 0)))
}

// latency adds the queues' histograms up.
func (d *Device) latency() []api.Latency {
	var out []api.Latency
	for op, name := range opNames {
		if name == "" {
			continue
		}
		l := api.Latency{Op: name, Buckets: make([]uint64, len(api.LatencyBounds)+1)}
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
