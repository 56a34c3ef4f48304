package api

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/standby"
)

// TestErrnoNames: what any name finds is the error, in any case, and each is printed by the
// name that people know.
func TestErrnoNames(t *testing.T) {
	named := 0
	for e := unix.Errno(1); e < mostErrno; e++ {
		kernel := unix.ErrnoName(e)
		if kernel == "" {
			if got, want := ErrnoName(e), "errno "; !strings.HasPrefix(got, want) {
				t.Errorf("%d has no name, and is printed as %q", int(e), got)
			}
			continue
		}
		named++
		for _, name := range []string{kernel, ErrnoName(e), strings.ToLower(kernel)} {
			if got, ok := errnoByName(name); !ok || got != e {
				t.Errorf("%q finds %d %v, want %d", name, int(got), ok, int(e))
			}
		}
	}
	if named < 130 {
		t.Errorf("only %d errors have names", named)
	}
	for name, e := range map[string]unix.Errno{
		"EWOULDBLOCK": unix.EAGAIN, "EDEADLOCK": unix.EDEADLK, "ENOTSUP": unix.EOPNOTSUPP,
		"EOPNOTSUPP": unix.EOPNOTSUPP, "EUCLEAN": unix.EUCLEAN, "EFSCORRUPTED": unix.EUCLEAN, "EROFS": unix.EROFS,
	} {
		if got, ok := errnoByName(name); !ok || got != e {
			t.Errorf("%q finds %d %v, want %d", name, int(got), ok, int(e))
		}
	}
	for e, name := range map[unix.Errno]string{unix.EUCLEAN: "EUCLEAN", unix.EOPNOTSUPP: "EOPNOTSUPP", unix.EAGAIN: "EAGAIN", unix.EDEADLK: "EDEADLK", 524: "errno 524"} {
		if got := ErrnoName(e); got != name {
			t.Errorf("%d is printed as %q, want %q", int(e), got, name)
		}
	}
	for _, name := range []string{"", "E", "EIOU", "5", "errno 5"} {
		if e, ok := errnoByName(name); ok {
			t.Errorf("%q finds %d", name, int(e))
		}
	}
}

// TestTriggerNames: a set may be written with any name and blanks, and names no error that
// is dealt with otherwise.
func TestTriggerNames(t *testing.T) {
	set, err := Triggers([]string{"EIO", " euclean", "EOPNOTSUPP "})
	if err != nil || !slices.Equal(set, []unix.Errno{unix.EIO, unix.EUCLEAN, unix.EOPNOTSUPP}) {
		t.Errorf("%v, %v", set, err)
	}
	for _, bad := range []string{"ENOSPC", "EDQUOT", "EWHAT", ""} {
		if _, err := Triggers([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for _, e := range standby.DefaultTriggers {
		if _, err := Triggers([]string{ErrnoName(e)}); err != nil {
			t.Errorf("a default: %v", err)
		}
	}
}
