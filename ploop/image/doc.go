// Package image is how an image is named, and how its state is reported: plain data, which can be
// stored, compared and sent, for those who neither read images nor serve them. Package ploop
// reads, checks and changes images by these names, and package ploop/stack serves them.
package image

const (
	// SectorSize is the unit of the format and of block devices, in bytes.
	SectorSize = 512
	// MaxDeltas is how many images a stack has at most, its base included: dm-ploop's limit.
	MaxDeltas = 253
)
