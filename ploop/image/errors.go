package image

import (
	"errors"
	"fmt"
)

// What can be wrong with an image, as a class. Every error that speaks of an image's content wraps
// one of them.
var (
	// ErrNotPloop is returned for a file without the magic of a ploop image.
	ErrNotPloop = errors.New("not a ploop image")

	// ErrNotImage is returned for what can't hold an image: a directory, a FIFO, a descriptor.
	ErrNotImage = errors.New("not a file that can be an image")

	// ErrCorrupt is returned when the content of an image contradicts itself or its file.
	ErrCorrupt = errors.New("image is corrupt")

	// ErrDamaged is returned by a read of what a damaged image doesn't have any more.
	ErrDamaged = errors.New("the image has lost this part of the disk")

	// ErrUnsupported is returned when an image has what this software doesn't know, but would
	// have to.
	ErrUnsupported = errors.New("image needs what this software does not have")

	// ErrLimit is returned when an image is larger, in any way, than this software takes.
	ErrLimit = errors.New("image exceeds a limit of this software")

	// ErrUncommon is returned when an image is to be made that other software refuses, and
	// nobody has asked for that.
	ErrUncommon = errors.New("image that not all software takes")

	// ErrGeometry is returned when images don't belong over one another, by their sizes, their
	// order or their number, and when an image is to be made with a size that can't be.
	ErrGeometry = errors.New("images of the stack do not fit each other")

	// ErrInUse is returned when the mark in an image says that it is open for writing, or was
	// and wasn't closed.
	ErrInUse = errors.New("image is in use or was not closed cleanly")

	// ErrLocked is returned when somebody else has an image open.
	ErrLocked = errors.New("image is locked")

	// ErrDiverged is returned when an image that is opened again isn't what it was when it was
	// served.
	ErrDiverged = errors.New("image is not the one that it is to replace, continued")

	// ErrUnproven is returned when an image that is opened again may be another than was served,
	// and nothing proves that it isn't.
	ErrUnproven = errors.New("nothing tells whether this is the file that was served")
)

// FormatError says what is wrong with a file, where, what was found there and
// what was expected. It prints as one line.
type FormatError struct {
	File   string
	Offset int64 // in bytes from the start of the file; -1: the file as a whole
	What   string
	Found  string
	Want   string
	Class  error // one of the Err values above
}

var _ error = (*FormatError)(nil)

func (e *FormatError) Error() string {
	at := ""
	if e.Offset >= 0 {
		at = fmt.Sprintf(" offset %d:", e.Offset)
	}
	if e.Want == "" {
		return fmt.Sprintf("%q:%s %s: found %s", e.File, at, e.What, e.Found)
	}
	return fmt.Sprintf("%q:%s %s: found %s, expected %s", e.File, at, e.What, e.Found, e.Want)
}

func (e *FormatError) Unwrap() error { return e.Class }

// IOError is a failed operation on one of the stack's files. It wraps the
// system's error, so errors.Is(err, syscall.ENOSPC) works.
type IOError struct {
	Op     string // read, write, sync, allocate, zero, truncate, index read, index write …
	File   string
	Offset int64 // -1: the whole file
	Err    error
}

var _ error = (*IOError)(nil)

func (e *IOError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("%s %q: %v", e.Op, e.File, e.Err)
	}
	return fmt.Sprintf("%s %q at offset %d: %v", e.Op, e.File, e.Offset, e.Err)
}

func (e *IOError) Unwrap() error { return e.Err }
