package image

import (
	"time"
)

// Evidence is what is remembered of an image that is served, to tell later whether a path still
// leads to it. It is plain data.
//
// Most file systems keep a file's inode number, and then that decides. FAT and many servers of
// FUSE number anew at each mount, or even when a file is looked up again; there the time of
// its birth decides, where the file system has one, and its content must fit in any case:
// the header's fields that never change, and the entries of the index that were there (of a raw
// image: sectors, as far as they weren't written since).
type Evidence struct {
	Mount   Mount       `json:"mount"`
	Inode   uint64      `json:"inode"`
	Device  uint64      `json:"device"`            // st_dev
	Birth   time.Time   `json:"birth,omitzero"`    // zero: not known
	Size    int64       `json:"size"`              // in bytes
	Head    string      `json:"head,omitempty"`    // the header's constant fields, in hexadecimal; empty: raw
	Index   [][2]uint64 `json:"index,omitempty"`   // some clusters of the index: number, sector in the file
	Sectors [][2]uint64 `json:"sectors,omitempty"` // some of a raw image that aren't all zeroes: number, FNV-1a
	Written bool        `json:"written,omitempty"` // the device writes to it
}
