package control

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A target that can't be read when a daemon follows one that died keeps what it had: its
// device is in standby, and without the lease what it holds would be let go.
func TestTargetNotReadAfterADeath(t *testing.T) {
	f := newFixture(t)
	f.crash()
	f.targets = []string{"lio"}
	f.start()
	f.create("v", "i")
	b := filepath.Join(f.dir, "config/target/core/iblock_0/b")
	if err := errors.Join(os.MkdirAll(b, 0o755),
		os.WriteFile(filepath.Join(b, "udev_path"), []byte("/dev/ublkb0"), 0o600),
		os.WriteFile(filepath.Join(b, "enable"), []byte("1\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	lease := func(want string) {
		t.Helper()
		waitFor(t, "standby "+want, func() bool {
			dev, err := f.c.Device(ctx, "v")
			return err == nil && dev.Standby.Value == want
		})
	}
	lease("off")
	f.die()
	enable := filepath.Join(b, "enable")
	if err := errors.Join(os.Remove(enable), os.Mkdir(enable, 0o755)); err != nil { // EISDIR
		t.Fatal(err)
	}
	f.start()
	waitFor(t, "a look at it", func() bool { return len(f.d.Key().Targets) == 1 && f.d.Key().Targets[0].Error != "" })
	f.eventually("v", "live")
	f.d.devicesChanged()
	time.Sleep(10 * time.Millisecond)
	lease("off")
	if rec := f.record("v"); len(rec.TargetLeases) != 1 {
		t.Errorf("record: %v", rec.TargetLeases)
	}
	// Once it can be read, it counts.
	if err := os.Remove(enable); err != nil {
		t.Fatal(err)
	}
	lease("not supported")
}
