package device

import (
	"time"

	"holdfast/ploop"
)

// Replace says which file is to be replaced by which.
type Replace struct {
	Level int // 0 is the base; -1: the top
	Image ploop.ImageRef
	// Force takes the file although it is not what the device had there, and
	// although writes to the old file may still be in flight: the caller says
	// that these can't land any more.
	Force bool
	// Drain bounds the wait for requests under way in the old file; 0:
	// DefaultDrain. Those that are still out then are done anew afterwards.
	Drain time.Duration
	// Commit makes the changed spec durable. It is called once, when everything
	// was checked and before anything is served from the new file; its error
	// undoes the replacement. nil: nothing to do.
	Commit func(Spec) error
}

// DefaultDrain is how long Replace waits for requests under way.
const DefaultDrain = 10 * time.Second
