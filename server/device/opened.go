package device

import (
	"time"

	"holdfast/ploop"
	"holdfast/ploop/stack"
)

// Opened is what there is to remember of the files of a device, for the server after this one.
type Opened struct {
	Size     int64            // of the disk, in bytes
	Evidence []ploop.Evidence // by level; zero: of a file that was open before
	// Earlier are mounts by which requests may still be under way, in files that were
	// replaced.
	Earlier []ploop.Mount
}

// Merge brings an earlier evidence up to date.
func (o *Opened) Merge(was []ploop.Evidence) []ploop.Evidence {
	all := make([]ploop.Evidence, len(o.Evidence))
	for i, e := range o.Evidence {
		if e.Mount.Boot == "" && i < len(was) {
			e = was[i]
		}
		all[i] = e
	}
	return all
}

// Known is what is known of a device's files before they are opened.
type Known struct {
	Size, RawSize int64 // see stack.Options
	// Before are the mounts by which writes of another server may be under way.
	Before []ploop.Mount
	// Fence wants proof that none is, as a recovery does anyway.
	Fence bool
}

// remember says what was opened.
func (d replacer) remember(s *stack.Stack, levels []bool, earlier bool) (Opened, error) {
	o := Opened{Size: s.Size()}
	var err error
	if o.Evidence, err = s.Evidence(levels); err == nil && earlier {
		o.Earlier = s.Earlier()
	}
	return o, err
}

// recordOpened has all files recorded.
func (d replacer) recordOpened(s *stack.Stack) error {
	o, err := d.remember(s, nil, false)
	if err != nil {
		return err
	}
	return d.opened(o)
}

// latePoll is the interval of the looks whether requests have come back from replaced files.
const latePoll = time.Second

// awaitLate remembers when nothing is under way in replaced files any more.
func (d replacer) awaitLate(g *generation) {
	for !d.drained() {
		select {
		case <-d.closing:
			return
		case <-time.After(latePoll):
		}
		// A replacement that fails makes another generation of the same stack.
		if d.gen.Load().stack != g.stack {
			return // the next one sees to it
		}
	}
	none := make([]bool, len(d.Spec().Images))
	if o, err := d.remember(g.stack, none, false); err == nil {
		_ = d.opened(o)
	}
}
