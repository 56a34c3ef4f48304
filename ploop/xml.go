package ploop

import (
	"errors"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxDescriptor bounds the file, in bytes: 253 images of generous names
	// take a tenth of it.
	maxDescriptor = 1 << 20
	// DescriptorName is the file's customary name beside its images.
	DescriptorName = "DiskDescriptor.xml"

	noParent = "{00000000-0000-0000-0000-000000000000}"
)

// readDescriptor gives one byte more than a descriptor may have of a file that
// is too long.
func readDescriptor(path string) ([]byte, error) {
	bad := func(op string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }
	// O_NONBLOCK: a FIFO by that name must not hang us.
	f, err := openPlain(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, bad("open", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return nil, bad("stat", err)
	} else if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, bad("read", errors.New("not a regular file"))
	}
	b := make([]byte, min(st.Size, maxDescriptor)+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, bad("read", err)
	}
	return b[:n], nil
}

// parseGUID takes a GUID in braces and gives it in lower case.
func parseGUID(s string) (string, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	if len(s) != len(noParent) {
		return "", errors.New("not a GUID")
	}
	for i, c := range []byte(s) {
		hex := '0' <= c && c <= '9' || 'a' <= c && c <= 'f'
		if mark := noParent[i]; mark == '0' && !hex || mark != '0' && c != mark {
			return "", errors.New("not a GUID")
		}
	}
	return s, nil
}
