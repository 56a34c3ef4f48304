package stack

import (
	"slices"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// Evidence tells it of each image, base first, or, with levels, of some, and leaves
// those of the others zero. It asks the file for its numbers, and reads some sectors of a raw one.
func (s *Stack) Evidence(levels []bool) ([]image.Evidence, error) {
	all := make([]image.Evidence, len(s.deltas))
	for i, d := range s.deltas {
		f, ok := d.File.(*storage.OSFile)
		if !ok || levels != nil && !levels[i] {
			continue
		}
		e := &all[i]
		var err error
		if e.Inode, e.Device, e.Birth, err = format.FileNumbers(f.FD); err != nil {
			return nil, d.IOError("stat", -1, err)
		}
		e.Mount, e.Size, e.Written = f.Mount, d.Size, i == s.Top() && !s.readOnly
		if d.Ref.Raw {
			if e.Sectors, err = d.SampleSectors(); err != nil {
				return nil, err
			}
			continue
		}
		e.Head = d.Header.Constant()
		e.Index = s.sampleIndex(d)
	}
	return all, nil
}

// Earlier are further mounts by which requests to the top may be under way, after a replacement
// that didn't wait for them.
func (s *Stack) Earlier() []image.Mount { return slices.Clone(s.reached) }

func (s *Stack) sampleIndex(d *delta) (index [][2]uint64) {
	first := format.Sampled // of those at the beginning: half, if there are others
	if s.clusters > format.Examined/2 {
		first /= 2
	}
	format.Samples(s.clusters, func(i uint64) bool {
		e := s.table.Load(i)
		if e.Mapped() && e.Level() == d.Level && (i >= format.Examined/2 || len(index) < first) {
			index = append(index, [2]uint64{i, uint64(e.Sector())})
		}
		return len(index) < format.Sampled
	})
	return index
}
