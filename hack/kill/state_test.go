package kill

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestStateDirectory: whatever has become of the state directory when the server
// is started again, the device is saved, and what is wrong is told.
func TestStateDirectory(t *testing.T) {
	needSoak(t)
	s := makeServer(t, "--targets", "none")
	state := s.dir + "/state"
	must(t, os.Mkdir(state, 0o700))
	must(t, syscall.Mount("none", state, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { syscall.Unmount(state, syscall.MNT_DETACH) })
	s.start()
	s.answers()
	g := oneDelta(t, t.TempDir(), 32<<20, 51)
	w := s.serve("saved", g, 12)
	failed := countRequests(t, "block_rq_error", w.disk)

	records := func() []string {
		t.Helper()
		files, err := filepath.Glob(state + "/devices/saved.json")
		must(t, err)
		if len(files) != 1 {
			t.Fatalf("records: %q", files)
		}
		return files
	}
	remount := func(flags uintptr) {
		t.Helper()
		must(t, syscall.Mount("none", state, "", syscall.MS_REMOUNT|flags, "size=256k"))
	}
	for _, c := range []struct {
		name        string
		break_, fix func()
	}{
		{"damaged", func() {
			must(t, os.WriteFile(records()[0], []byte(`{"version": 1, "crc32c": "00000000", "device": {`), 0o600))
		}, func() {}},
		{"empty", func() { must(t, os.Truncate(records()[0], 0)) }, func() {}},
		{"gone", func() { must(t, os.RemoveAll(state+"/devices")) }, func() {}},
		{"read-only", func() { remount(syscall.MS_RDONLY) }, func() { remount(0) }},
		{"full", func() {
			f, err := os.Create(state + "/ballast")
			must(t, err)
			defer f.Close()
			for err == nil {
				_, err = f.Write(make([]byte, 4096))
			}
		}, func() { must(t, os.Remove(state+"/ballast")) }},
	} {
		w.advances(100)
		s.kill()
		c.break_()
		took := s.restart("saved")
		w.advances(50)
		snap, err := s.client.Snapshot(t.Context())
		must(t, err)
		t.Logf("%s: served again after %v; problems: %+v; of the device: %q", c.name, round(took), snap.Problems, snap.Devices[0].Problem)
		if n := s.recoveries("saved"); n != 1 {
			t.Errorf("%s: %d recoveries", c.name, n)
		}
		// A kill in this state, too.
		s.kill()
		s.restart("saved")
		w.advances(50)
		c.fix()
	}
	if n := failed.hits(); n != 0 {
		t.Errorf("%d requests failed", n)
	}
	s.remove("saved", w)
}
