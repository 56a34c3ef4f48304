package api

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// preferred are the names of errors that have several, as messages and manuals have them.
// unix.ErrnoName has some of these errors by the other name.
var preferred = map[unix.Errno]string{
	unix.EAGAIN:     "EAGAIN",
	unix.EDEADLK:    "EDEADLK",
	unix.EOPNOTSUPP: "EOPNOTSUPP",
	unix.EUCLEAN:    "EUCLEAN",
	unix.EBADMSG:    "EBADMSG",
}

// aliases are names that neither preferred nor unix.ErrnoName need have: those of errno(3),
// and the kernel's own for damaged metadata.
var aliases = map[string]unix.Errno{
	"EWOULDBLOCK":  unix.EWOULDBLOCK,
	"EDEADLOCK":    unix.EDEADLOCK,
	"ENOTSUP":      unix.ENOTSUP,
	"EFSCORRUPTED": unix.EUCLEAN,
	"EFSBADCRC":    unix.EBADMSG,
}

// mostErrno is above every error that a system call gives on any architecture.
const mostErrno = 4096

// ErrnoName is an error's name, of several the one that people know. One without a name,
// which the kernel means to keep to itself, is "errno 524".
func ErrnoName(e unix.Errno) string {
	if name := preferred[e]; name != "" {
		return name
	}
	if name := unix.ErrnoName(e); name != "" {
		return name
	}
	return fmt.Sprintf("errno %d", int(e))
}

// errnoByName finds an error by any of its names, in upper or lower case.
func errnoByName(name string) (unix.Errno, bool) {
	name = strings.ToUpper(name)
	if e, ok := aliases[name]; ok {
		return e, true
	}
	for e := unix.Errno(1); e < mostErrno; e++ {
		if name != "" && (preferred[e] == name || unix.ErrnoName(e) == name) {
			return e, true
		}
	}
	return 0, false
}

// Triggers looks up errors by their names; nil for none.
func Triggers(names []string) ([]unix.Errno, error) {
	var set []unix.Errno
	for _, name := range names {
		name = strings.TrimSpace(name)
		errno, ok := errnoByName(name)
		if !ok {
			return nil, fmt.Errorf("standby error %q: not the name of an error, like ENOTCONN", name)
		}
		if errno == unix.ENOSPC || errno == unix.EDQUOT {
			return nil, fmt.Errorf("standby error %s: requests wait for space anyway", name)
		}
		set = append(set, errno)
	}
	return set, nil
}
