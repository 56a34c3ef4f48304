package ploop

import (
	"holdfast/ploop/image"
	"holdfast/ploop/internal/bundle"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// Header is the fixed part of an image's head. Its sizes and offsets are in sectors.
type Header = format.Header

// Limits of this software. The format's own are wider; these keep a hostile
// file from costing more memory than its disk is worth.
const (
	// MaxBATEntries bounds the clusters of a disk.
	MaxBATEntries = format.MaxBATEntries
	// MaxClusterSize is in bytes. The ploop tool stops at 64 MiB.
	MaxClusterSize = format.MaxClusterSize
)

// DescriptorName is the customary name of a disk's descriptor beside its images.
const DescriptorName = bundle.DescriptorName

// ParseHeader decodes and checks the head of an image. b holds the first bytes
// of the file (64 are enough), size is the file's, in bytes, and file names it
// in errors. It trusts nothing and allocates nothing that b doesn't bound.
func ParseHeader(file string, b []byte, size int64) (*Header, error) {
	return format.ParseHeader(file, b, size)
}

// AlignedBuffer returns n bytes at an address that direct I/O takes.
func AlignedBuffer(n int) []byte { return storage.AlignedBuffer(n) }

// MountOf says by what a path leads to its file. It doesn't ask the file's storage for more than
// its name.
func MountOf(path string) (image.Mount, error) { return storage.MountOf(path) }

// SameFile says whether a path leads to the file that the evidence is of: nil, it does; an
// ErrDiverged says what is another; ErrUnproven: it may, and nothing tells. The time
// of birth and the content are asked only where the inode number doesn't tell, or with
// anew, where the file system itself may be another one. It hangs with the file's storage.
func SameFile(e *image.Evidence, ref image.Ref, anew bool) error {
	return format.SameFile(e, ref, anew)
}
