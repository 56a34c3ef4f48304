package ploop

import (
	"errors"
	"fmt"
	"io"
)

// What can be wrong with an image, as a class. Every error of this package
// that speaks of an image's content wraps one of them.
var (
	ErrNotPloop    = errors.New("not a ploop image")
	ErrCorrupt     = errors.New("image is corrupt")
	ErrInUse       = errors.New("image is in use or was not closed cleanly")
	ErrLocked      = errors.New("image is locked")
	ErrGeometry    = errors.New("images of the stack do not fit each other")
	ErrUnsupported = errors.New("image needs what this software does not have")
	ErrLimit       = errors.New("image exceeds a limit of this software")
	ErrReadOnly    = errors.New("image is open read-only")
	ErrRange       = errors.New("request is outside the disk or not sector-aligned")
	ErrClosed      = errors.New("stack is closed")
	ErrNotImage    = errors.New("not a file that can be an image")
	ErrUncommon    = errors.New("image that not all software takes")
	ErrDamaged     = errors.New("the image has lost this part of the disk")

	ErrSuperseded = errors.New("stack is being succeeded by another")
	ErrInFlight   = errors.New("operations are still under way in the old storage")
	ErrDiverged   = errors.New("image is not the one that it is to replace, continued")
	ErrNoLock     = errors.New("the file system of the image has no locks")
	ErrLocalLock  = errors.New("the lock of the image proves nothing")
	ErrLockLost   = errors.New("the lock of the image in use could not be taken back")

	// ErrTruncated is a file that became shorter under a live stack. It is an
	// io.ErrUnexpectedEOF, as is a read of what is gone.
	ErrTruncated = fmt.Errorf("image was cut off: %w", io.ErrUnexpectedEOF)
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

func (e *IOError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("%s %q: %v", e.Op, e.File, e.Err)
	}
	return fmt.Sprintf("%s %q at offset %d: %v", e.Op, e.File, e.Offset, e.Err)
}

func (e *IOError) Unwrap() error { return e.Err }
