package image

import (
	"fmt"
)

// Range is a range of the disk, in bytes.
type Range struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
}

func (r Range) String() string { return fmt.Sprintf("%d+%d", r.Start, r.Length) }

// Damage is what images that are read although they are damaged can't give, or
// gives by a guess. The lists end after some entries; the sums count all.
type Damage struct {
	// Guesses were made about a header: one line each.
	Guesses []string
	// Unreadable ranges aren't in the file, or nothing says where.
	Unreadable      []Range
	UnreadableBytes int64
	// Doubtful ranges share their place in the file with another range, which
	// reads the same. At most one of them is right.
	Doubtful      []Range
	DoubtfulBytes int64
}

// Extent is a range of the disk whose bytes lie together in one file of the
// stack, or in none. Numbers are in bytes.
type Extent struct {
	Start  int64 `json:"start"` // on the disk
	Length int64 `json:"length"`
	// Data says that the range is stored: at Offset of File, the image of
	// that Level. Otherwise it reads as zeroes and Level is -1.
	Data   bool   `json:"data"`
	Level  int    `json:"level"`
	File   string `json:"file,omitempty"`
	Offset int64  `json:"offset"`
	// Damaged says that the image of Level has lost the range, and Doubtful
	// that another range has the same place; only of images that are opened
	// although they are damaged.
	Damaged  bool `json:"damaged,omitempty"`
	Doubtful bool `json:"doubtful,omitempty"`
}

func (x Extent) String() string {
	if !x.Data {
		return fmt.Sprintf("%d+%d zero", x.Start, x.Length)
	}
	return fmt.Sprintf("%d+%d level %d %q at %d", x.Start, x.Length, x.Level, x.File, x.Offset)
}
