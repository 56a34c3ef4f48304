package ploop

// maxRanges bounds a list.
const maxRanges = 1000

// ranges is a list of a bounded length in rising order, with the sum of all.
type ranges struct {
	list  []DiskRange
	bytes int64
}

func (r *ranges) add(start, n int64) {
	if n <= 0 {
		return
	}
	r.bytes += n
	if k := len(r.list) - 1; k >= 0 && r.list[k].Start+r.list[k].Length == start {
		r.list[k].Length += n
	} else if len(r.list) < maxRanges {
		r.list = append(r.list, DiskRange{Start: start, Length: n})
	}
}

// damage looks through the whole index.
func (v *view) damage() *Damage {
	var unreadable, doubtful ranges
	_ = v.extents(func(x Extent) error { // visit has no error
		if x.Damaged {
			unreadable.add(x.Start, x.Length)
		}
		if x.Doubtful {
			doubtful.add(x.Start, x.Length)
		}
		return nil
	})
	d := &Damage{Unreadable: unreadable.list, UnreadableBytes: unreadable.bytes, Doubtful: doubtful.list, DoubtfulBytes: doubtful.bytes}
	for _, delta := range v.deltas {
		d.Guesses = append(d.Guesses, delta.guesses()...)
	}
	return d
}
