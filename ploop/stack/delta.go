package stack

import (
	"sync/atomic"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// delta is one open image of a stack, or of several that came after one another.
type delta struct {
	*format.Delta
	users atomic.Int32 // stacks that have it open
	syncs syncs

	// unlocked says that the lock was given back to a successor, to be taken
	// again if that one doesn't come to live.
	unlocked  atomic.Bool
	unlocking chan struct{} // holds one while an operation on the lock is under way
}

func openDelta(ref image.Ref, open storage.Opener, write, direct bool, tolerate format.Tolerance, rawSize int64) (*delta, error) {
	f, err := format.OpenKnown(ref, open, write, direct, tolerate, rawSize)
	if err != nil {
		return nil, err
	}
	d := &delta{Delta: f, unlocking: make(chan struct{}, 1)}
	d.users.Store(1)
	return d, nil
}

// images are the files of the stack, base first.
func (s *Stack) images() []*format.Delta {
	images := make([]*format.Delta, len(s.deltas))
	for i, d := range s.deltas {
		images[i] = d.Delta
	}
	return images
}

// release closes the file with its last user.
func (d *delta) release() error {
	if d.users.Add(-1) > 0 {
		return nil
	}
	return d.File.Close()
}

// leaveToOthers leaves the file to its other users, if it has any.
func (d *delta) leaveToOthers() bool {
	for {
		n := d.users.Load()
		if n <= 1 {
			return false
		}
		if d.users.CompareAndSwap(n, n-1) {
			return true
		}
	}
}
