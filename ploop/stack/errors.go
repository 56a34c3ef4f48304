package stack

import (
	"errors"
	"fmt"
	"io"

	"holdfast/ploop/internal/lock"
)

// What a stack refuses, as a class.
var (
	ErrReadOnly   = errors.New("image is open read-only")
	ErrRange      = errors.New("request is outside the disk or not sector-aligned")
	ErrClosed     = errors.New("stack is closed")
	ErrSuperseded = lock.ErrOver
	ErrInFlight   = errors.New("operations are still under way in the old storage")
	ErrNoLock     = errors.New("the file system of the image has no locks")
	ErrLocalLock  = errors.New("the lock of the image proves nothing")
	ErrLockLost   = errors.New("the lock of the image in use could not be taken back")

	// ErrTruncated is a file that became shorter under a live stack. It is an
	// io.ErrUnexpectedEOF, as is a read of what is gone.
	ErrTruncated = fmt.Errorf("image was cut off: %w", io.ErrUnexpectedEOF)
)
