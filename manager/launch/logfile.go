package launch

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// logMax is the size in bytes from which on the next process gets a new log. The one before is kept
// as log.1, and none before that.
const logMax = 1 << 20

const logName = "log"

// openLog opens the log of a process that is about to start, in the directory of its name.
func openLog(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, logName)
	if fi, err := os.Lstat(path); err == nil && fi.Size() > logMax {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
}

// removeLogs removes them, and the directory if nothing else is in it.
func removeLogs(dir string) error {
	for _, name := range []string{logName, logName + ".1"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	os.Remove(dir)
	return nil
}
