package bundle

import (
	"errors"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/ploop/internal/plain"
)

const (
	// MaxSize bounds the file, in bytes: 253 images of generous names
	// take a tenth of it.
	MaxSize = 1 << 20
	// DescriptorName is the file's customary name beside its images.
	DescriptorName = "DiskDescriptor.xml"

	NoParent = "{00000000-0000-0000-0000-000000000000}"
)

// ReadFile gives one byte more than a descriptor may have of a file that
// is too long.
func ReadFile(path string) ([]byte, error) {
	bad := func(op string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }
	// O_NONBLOCK: a FIFO by that name must not hang us.
	f, err := plain.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, bad("open", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(f.FD, &st); err != nil {
		return nil, bad("stat", err)
	} else if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, bad("read", errors.New("not a regular file"))
	}
	b := make([]byte, min(st.Size, MaxSize)+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, bad("read", err)
	}
	return b[:n], nil
}

// ParseGUID takes a GUID in braces and gives it in lower case.
func ParseGUID(s string) (string, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	if len(s) != len(NoParent) {
		return "", errors.New("not a GUID")
	}
	for i, c := range []byte(s) {
		hex := '0' <= c && c <= '9' || 'a' <= c && c <= 'f'
		if mark := NoParent[i]; mark == '0' && !hex || mark != '0' && c != mark {
			return "", errors.New("not a GUID")
		}
	}
	return s, nil
}
