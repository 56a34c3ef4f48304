package draft

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDraftClosesOnce: its descriptor's number may be another file's afterwards.
func TestDraftClosesOnce(t *testing.T) {
	d, err := New(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	fd := d.FD
	if err := d.Publish(); err != nil {
		t.Fatal(err)
	}
	var other int
	if other, err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	d.Discard()
	var st unix.Stat_t
	if err := unix.Fstat(other, &st); err != nil {
		t.Errorf("descriptor %d (the draft's was %d) was closed: %v", other, fd, err)
	}
}
