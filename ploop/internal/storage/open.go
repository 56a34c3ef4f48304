package storage

import (
	"golang.org/x/sys/unix"

	"holdfast/ploop/internal/plain"
)

// Opener opens the file at path, for reading or writing as well; direct asks for direct I/O
// where it is of use.
type Opener func(path string, write, direct bool) (File, error)

// Open opens and locks a file of the operating system.
func Open(path string, write, direct bool) (File, error) {
	return openGuarded(path, write, false, direct)
}

// OpenStill opens a file that nobody may write to while it is open.
func OpenStill(path string, write, direct bool) (File, error) {
	return openGuarded(path, write, true, direct)
}

func openGuarded(path string, write, guard, direct bool) (File, error) {
	f, err := OpenFile(path, write, guard, direct)
	if err != nil {
		return nil, err // not f: a nil *OSFile isn't a nil file
	}
	return f, nil
}

// OpenUnlocked is for looking on while someone else may write.
func OpenUnlocked(path string, _, _ bool) (File, error) {
	// O_NONBLOCK as in OpenFile; reads of files and block devices don't care.
	opened, err := plain.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, openError(path, err)
	}
	f := &OSFile{File: opened, Direct: noDirect}
	if err := f.checkKind(path); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
