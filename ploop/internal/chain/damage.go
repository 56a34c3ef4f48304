package chain

import (
	"holdfast/ploop/image"
)

// maxRanges bounds a list.
const maxRanges = 1000

// Ranges is a list of a bounded length in rising order, with the sum of all.
type Ranges struct {
	List  []image.Range
	Bytes int64
}

// Add adds n bytes at start, which is behind all that was added before.
func (r *Ranges) Add(start, n int64) {
	if n <= 0 {
		return
	}
	r.Bytes += n
	if k := len(r.List) - 1; k >= 0 && r.List[k].Start+r.List[k].Length == start {
		r.List[k].Length += n
	} else if len(r.List) < maxRanges {
		r.List = append(r.List, image.Range{Start: start, Length: n})
	}
}

// Damage looks through the whole index.
func (v *Chain) Damage() *image.Damage {
	var unreadable, doubtful Ranges
	_ = v.Extents(func(x image.Extent) error { // visit has no error
		if x.Damaged {
			unreadable.Add(x.Start, x.Length)
		}
		if x.Doubtful {
			doubtful.Add(x.Start, x.Length)
		}
		return nil
	})
	d := &image.Damage{Unreadable: unreadable.List, UnreadableBytes: unreadable.Bytes, Doubtful: doubtful.List, DoubtfulBytes: doubtful.Bytes}
	for _, delta := range v.Deltas {
		d.Guesses = append(d.Guesses, delta.Guesses()...)
	}
	return d
}
