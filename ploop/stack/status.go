package stack

import (
	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

// Status is a picture of a live stack, taken without stopping anything.
type Status struct {
	Size        int64          `json:"size"`         // of the disk, in bytes
	ClusterSize int64          `json:"cluster_size"` // in bytes
	Clusters    uint64         `json:"clusters"`     // of the disk
	Allocated   int64          `json:"allocated"`    // clusters that the top holds
	ReadOnly    bool           `json:"read_only"`
	IndexDirty  bool           `json:"index_dirty"` // index in the file, not yet durable
	Images      []image.Status `json:"images"`      // base first
}

// Size is the disk's, in bytes.
func (s *Stack) Size() int64 { return s.size }

// ClusterSize is in bytes.
func (s *Stack) ClusterSize() int64 { return s.cluster }

// ReadOnly says whether the stack was opened so.
func (s *Stack) ReadOnly() bool { return s.readOnly }

// Unmaps says whether a discard of whole clusters gives them back to the
// image; over a lower delta it can't, since that one would show through.
func (s *Stack) Unmaps() bool { return len(s.deltas) == 1 && !s.top.Ref.Raw }

// Fds gives the descriptor of each level's file, for transfers to the places
// that Reader.Locate tells. They are valid until Close, or after the Commit of a Handover until
// no transfer and no call is under way.
func (s *Stack) Fds() []int {
	fds := make([]int, len(s.deltas))
	for i, d := range s.deltas {
		fds[i] = d.File.Fd()
	}
	return fds
}

// Top is the level that writes go to.
func (s *Stack) Top() int { return len(s.deltas) - 1 }

// Status takes the picture.
func (s *Stack) Status() Status {
	st := Status{
		Size: s.size, ClusterSize: s.cluster, Clusters: s.clusters,
		Allocated: s.allocated.Load(), ReadOnly: s.readOnly, IndexDirty: s.IndexDirty(),
	}
	for _, d := range s.deltas {
		im := image.Status{Path: d.Ref.Path, Format: d.Format(), Level: d.Level}
		if f, ok := d.File.(*storage.OSFile); ok {
			if im.Direct, im.Cached, im.Locked = f.Direct.On, !f.Direct.Bypasses, f.Locked(); im.Locked {
				im.Scope = f.Mount.Scope
			}
			im.Dev, im.Ino, im.Rdev = f.Dev, f.Ino, f.Rdev
		}
		if d.Ext != nil {
			im.Bitmaps = len(d.Ext.Bitmaps)
		}
		st.Images = append(st.Images, im)
	}
	return st
}

// Allocated is how many clusters the top holds.
func (s *Stack) Allocated() int64 { return s.allocated.Load() }

// MemoryUnit is what the memory of direct transfers is aligned to at least, in bytes; 0: nothing
// is direct.
func (s *Stack) MemoryUnit() (n int64) {
	for _, d := range s.deltas {
		if f, ok := d.File.(*storage.OSFile); ok && f.Direct.On {
			n = max(n, f.Direct.Memory)
		}
	}
	return n
}
