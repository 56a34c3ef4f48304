package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"holdfast/api"

	"golang.org/x/sys/unix"
)

// DirLock is the exclusive right to a directory, held through an flock on a
// file in it: it ends with the process however that ends, and the file that
// stays behind means nothing.
type DirLock struct{ file *os.File }

// LockDir takes the lock on dir, which must exist. what names the directory's
// purpose for the message.
func LockDir(dir, what string) (*DirLock, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if readOnly(err) {
		// What it knows is worth having all the same: devices may wait for us.
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			f, err = os.Open(dir)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			who := "another holdfast daemon"
			if b, _ := io.ReadAll(io.LimitReader(f, 32)); len(b) > 0 {
				text := strings.Trim(strings.TrimSpace(string(b)), "\x00")
				if pid, err := strconv.Atoi(text); err == nil && api.Dying(pid) {
					return nil, api.Errorf(api.CodeBusy, "the %s %q is still in use: an earlier daemon, %s", what, dir, api.DyingText(pid))
				}
				who += " (process " + text + ")"
			}
			return nil, api.Errorf(api.CodeBusy, "%s uses the %s %q; give this one a --run-dir and --state-dir of its own", who, what, dir)
		}
		return nil, fmt.Errorf("%s: lock %q: %w", what, path, err)
	}
	// For the message above only; not worth failing for on a full disk.
	if f.Truncate(0) == nil {
		f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	return &DirLock{f}, nil
}

// readOnly says that nothing can be written, for now.
func readOnly(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

func (l *DirLock) Release() {
	if l != nil {
		l.file.Close()
	}
}
