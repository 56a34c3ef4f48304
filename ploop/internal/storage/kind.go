package storage

import (
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/bundle"
)

// openError tells apart what can't be opened because of what it is.
func openError(path string, err error) error {
	var st unix.Stat_t
	if (errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO)) && unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return wrongKind(path, st.Mode)
	}
	return &image.IOError{Op: "open", File: path, Offset: -1, Err: err}
}

// wrongKind refuses what can't hold an image; mode is stat's. Of a bundle it
// names the images.
func wrongKind(path string, mode uint32) error {
	e := &image.FormatError{File: path, Offset: -1, What: "file", Want: "a regular file or a block device", Class: image.ErrNotImage}
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Found = "a directory"
		if n, err := bundle.Read(filepath.Join(path, bundle.DescriptorName)); err == nil {
			e.Found = "a directory with a " + bundle.DescriptorName
			e.Want = n.Advice()
		}
	case unix.S_IFIFO:
		e.Found = "a FIFO"
	case unix.S_IFSOCK:
		e.Found = "a socket"
	case unix.S_IFCHR:
		e.Found = "a character device"
	default:
		e.Found = "neither a regular file nor a block device"
	}
	return e
}
