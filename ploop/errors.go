package ploop

import (
	"holdfast/ploop/image"
)

// Errors have their types and classes in package image; these are their names here.
type (
	FormatError = image.FormatError
	IOError     = image.IOError
)

// What can be wrong with an image.
var (
	ErrNotPloop    = image.ErrNotPloop
	ErrCorrupt     = image.ErrCorrupt
	ErrInUse       = image.ErrInUse
	ErrLocked      = image.ErrLocked
	ErrGeometry    = image.ErrGeometry
	ErrUnsupported = image.ErrUnsupported
	ErrLimit       = image.ErrLimit
	ErrNotImage    = image.ErrNotImage
	ErrUncommon    = image.ErrUncommon
	ErrDamaged     = image.ErrDamaged
	ErrDiverged    = image.ErrDiverged
	ErrUnproven    = image.ErrUnproven
)
