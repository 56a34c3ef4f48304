package ploop

import (
	"holdfast/ploop/image"
)

// The plain data of images has a package of its own; these are its names here.
type (
	ImageRef    = image.Ref
	ImageStatus = image.Status
	Scope       = image.Scope
	Mount       = image.Mount
	Evidence    = image.Evidence
	Extent      = image.Extent
	Damage      = image.Damage
	DiskRange   = image.Range
)

const (
	// SectorSize is the unit of the format's offsets and sizes, in bytes.
	SectorSize = image.SectorSize
	// MaxDeltas is how many images a stack has at most.
	MaxDeltas = image.MaxDeltas

	ScopeMount   = image.ScopeMount
	ScopeHost    = image.ScopeHost
	ScopeStorage = image.ScopeStorage
)

// ParseImageRef takes FILE or raw@FILE.
func ParseImageRef(s string) (ImageRef, error) { return image.ParseRef(s) }
