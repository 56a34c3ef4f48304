// Package ploop makes, checks, repairs, converts and describes ploop disk images: files of the
// formats "WithoutFreeSpace" (version 1) and "WithouFreSpacExt" (version 2), stacked
// as deltas over one another and, if wanted, over one raw base. It serves none: that
// is package ploop/stack. Images are named as package ploop/image says.
//
// # The format in a paragraph
//
// An image ("delta") is a header of 64 bytes, the BAT (block allocation
// table: one 32-bit entry per cluster of the disk), and clusters of data. An
// entry of 0 says that the cluster isn't in this delta: it is in the delta
// below, or it reads as zeroes. There is no explicit zero. All numbers are
// little-endian and all positions here are bytes unless a name says sectors
// (of 512 bytes).
//
// # Images in use
//
// [Check], [Convert] and [Map] lock the images that they read, so that nobody writes to them
// meanwhile, and one that is in use is [ErrLocked]. [ReadInfo] takes no lock and works on all.
//
// # Untrusted images
//
// All of an image is taken for what a stranger has written: nothing that is read from it costs
// more memory than its disk is worth ([MaxBATEntries], [MaxClusterSize]), and what is wrong with
// it is a [FormatError], which says where.
package ploop
