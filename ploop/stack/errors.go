package stack

import (
	"errors"
	"fmt"
	"io"

	"holdfast/ploop/internal/lock"
)

// What a stack refuses, as a class. What is wrong with an image has its classes in package image.
var (
	// ErrReadOnly is returned by calls that write to a stack that was opened for reading, and
	// by Open where damaged images would be opened for writing.
	ErrReadOnly = errors.New("image is open read-only")

	// ErrRange is returned by calls whose range isn't within the disk or not of whole sectors.
	ErrRange = errors.New("request is outside the disk or not sector-aligned")

	// ErrClosed is returned by calls on a stack that was closed, abandoned, or handed over.
	ErrClosed = errors.New("stack is closed")

	// ErrTruncated is returned when a file has become shorter under a live stack. It is an
	// io.ErrUnexpectedEOF, as is a read of what is gone.
	ErrTruncated = fmt.Errorf("image was cut off: %w", io.ErrUnexpectedEOF)
)

// What keeps a stack from being handed over, as a class.
var (
	// ErrSuperseded is returned by calls that would write the image's structure, or wait for
	// another one, once a handover has begun, until it is aborted.
	ErrSuperseded = lock.ErrOver

	// ErrHandover is returned when the steps of a handover come in an order that has no
	// meaning, and when its old stack is closed before its end.
	ErrHandover = errors.New("handover of a stack")

	// ErrInFlight is returned by Prepare when something that is under way in the old storage
	// could still land in the new one.
	ErrInFlight = errors.New("operations are still under way in the old storage")

	// ErrLockLost is returned when the old stack's lock, given back for the new one's sake,
	// can't be acquired again: others may write to the image.
	ErrLockLost = errors.New("the lock of the image in use could not be acquired again")
)

// What keeps a stack from being opened where another server may have had it, as a class.
var (
	// ErrNoLock is returned by Open with Options.Locked when the file system of the top has
	// no locks, so that nothing tells whether writes are under way.
	ErrNoLock = errors.New("the file system of the image has no locks")

	// ErrLocalLock is returned by Open with Options.Locked when the top's lock was had, but
	// isn't seen by whom the other server's writes would come.
	ErrLocalLock = errors.New("the lock of the image proves nothing")
)
