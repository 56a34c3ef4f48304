package ploop

import (
	"golang.org/x/sys/unix"
)

type opener func(path string, write, direct bool) (file, error)

func openOSFile(path string, write, direct bool) (file, error) {
	return openGuarded(path, write, false, direct)
}

// openStill opens a file that nobody may write to while it is open.
func openStill(path string, write, direct bool) (file, error) {
	return openGuarded(path, write, true, direct)
}

func openGuarded(path string, write, guard, direct bool) (file, error) {
	f, err := openFile(path, write, guard, direct)
	if err != nil {
		return nil, err // not f: a nil *osFile isn't a nil file
	}
	return f, nil
}

// openUnlocked is for looking on while someone else may write.
func openUnlocked(path string, _, _ bool) (file, error) {
	// O_NONBLOCK as in openFile; reads of files and block devices don't care.
	plain, err := openPlain(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, openError(path, err)
	}
	f := &osFile{plainFile: plain, dio: noDirect}
	if err := f.checkKind(path); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
