package stack

import (
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// Options say how to open a stack.
type Options struct {
	// ReadOnly opens the top for reading as well; nothing is written then.
	ReadOnly bool
	// TakeOver accepts a top whose in_use was left set. It is for the crash
	// of the caller's own earlier life: what this package writes is safe to
	// go on with after a crash, what a stranger left behind wants a check.
	TakeOver bool
	// Continue wants a top that was left in use, as a device's is whose server
	// died: one that was closed since, or never opened, isn't it (ErrDiverged).
	Continue bool
	// Locked wants proof that no write of another server is under way to the top, by its lock
	// or otherwise. Without it ErrNoLock or ErrLocalLock comes before anything is written.
	// Before says by what that server had reached the file; empty: not known.
	Locked bool
	Before []image.Mount
	// Distrust takes none of the top's index for durable, although it reads so:
	// syncs failed in the caller's earlier life. A top that is taken over and
	// goes through the page cache is distrusted in any case: there may have been one
	// that nobody lived to tell of.
	Distrust bool
	// Damaged opens, read-only, images with bad BAT entries or a wrong data_off.
	// Reads of what such an image has lost are [ErrDamaged], and never show an
	// older version of a lower image; see [Stack.Damage] for the rest.
	Damaged bool
	// Size is the disk's in bytes where it is known already, as the size of a live block
	// device is; 0: what the images say. RawSize is that of a raw base over which there are
	// others, as it was when the disk was served before; 0: not known. A raw image may
	// have become longer than these, not shorter.
	Size, RawSize int64
	// NoDirect serves the files through the page cache.
	NoDirect bool
	// Log takes one line about what is worth knowing and no error; nil: nobody.
	Log func(format string, args ...any)

	open    storage.Opener
	noAhead bool   // for tests: grow the file only when there is no room
	step    uint64 // for tests: grow it by so many clusters; 0: by growStep
	hasty   bool   // tests' control: rely on room that isn't durable
	noOrder bool   // tests' control: leave out the syncs that order data and index
}

func (o *Options) tolerance() format.Tolerance {
	return format.Tolerance{Damaged: o.Damaged}
}
