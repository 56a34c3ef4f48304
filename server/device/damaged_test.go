package device

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/ublk"
)

// TestDamaged: a read of what a damaged image has lost fails with EIO, and doesn't
// send its device to standby, which would wait for storage that answers already.
func TestDamaged(t *testing.T) {
	ref := testImage(t, t.TempDir(), 16)
	f, err := os.OpenFile(ref.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{99}, 64+4*5); err != nil { // an entry that leads nowhere
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s := newSlowDeviceOf(t, 4, stack.Options{ReadOnly: true, Damaged: true}, ref)
	s.key.Enable("test")
	if err := s.Attach("test"); err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int64]unix.Errno{4: 0, 5: unix.EIO, 6: 0} {
		r := s.request(&fakeRequest{op: ublk.OpRead, off: i * testCluster, n: 4096})
		select {
		case errno := <-r.end:
			if errno != want {
				t.Errorf("cluster %d: %v, want %v", i, errno, want)
			}
		case <-r.anew:
			t.Errorf("cluster %d: the request is held", i)
		}
	}
	if st := s.machine.Status(); st.Flag {
		t.Errorf("%+v", st)
	}
}

// TestDamagedSpec: damaged images are served read-only, and who is refused hears so.
func TestDamagedSpec(t *testing.T) {
	spec := api.Spec{Name: "v", Images: []ploop.ImageRef{{Path: "/i"}}, Damaged: true}
	if err := spec.Validate(); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("%v", err)
	}
	spec.ReadOnly = true
	if err := spec.Validate(); err != nil {
		t.Error(err)
	}
}
