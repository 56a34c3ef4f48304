package ploop

import (
	"slices"
)

// Evidence tells it of each image, base first, or, with levels, of some, and leaves
// those of the others zero. It asks the file for its numbers, and reads some sectors of a raw one.
func (s *Stack) Evidence(levels []bool) ([]Evidence, error) {
	all := make([]Evidence, len(s.deltas))
	for i, d := range s.deltas {
		f, ok := d.file.(*osFile)
		if !ok || levels != nil && !levels[i] {
			continue
		}
		e := &all[i]
		var err error
		if e.Inode, e.Device, e.Birth, err = fileNumbers(f.fd); err != nil {
			return nil, d.ioError("stat", -1, err)
		}
		e.Mount, e.Size, e.Written = f.mount, d.size, i == s.Top() && !s.readOnly
		if d.ref.Raw {
			if e.Sectors, err = d.sampleSectors(); err != nil {
				return nil, err
			}
			continue
		}
		e.Head = d.hdr.constant()
		e.Index = s.sampleIndex(d)
	}
	return all, nil
}

// Earlier are further mounts by which requests to the top may be under way, after a replacement
// that didn't wait for them.
func (s *Stack) Earlier() []Mount { return slices.Clone(s.reached) }

func (s *Stack) sampleIndex(d *delta) (index [][2]uint64) {
	first := sampled // of those at the beginning: half, if there are others
	if s.clusters > lookedAt/2 {
		first /= 2
	}
	samples(s.clusters, func(i uint64) bool {
		e := s.table.load(i)
		if e.mapped() && e.level() == d.level && (i >= lookedAt/2 || len(index) < first) {
			index = append(index, [2]uint64{i, uint64(e.sector())})
		}
		return len(index) < sampled
	})
	return index
}
