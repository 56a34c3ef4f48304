package control

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"holdfast/device"
)

// heir is a program that gets ready to take over, and then does something else.
func (f *fixture) heir(then string) UpgradeRequest {
	f.t.Helper()
	path := filepath.Join(f.dir, "heir")
	text := fmt.Sprintf("#!/bin/sh\necho ready >&%d\nread go <&%d\n%s\nexit 1\n", heirReport, heirGo, then)
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		f.t.Fatal(err)
	}
	return UpgradeRequest{Binary: path}
}

// An heir that dies is as if there had been none.
func TestUpgradeFails(t *testing.T) {
	f := newFixture(t)
	was := f.create("v", "i")
	// At once, or after it could serve nothing.
	for _, then := range []string{"", "", "echo serving 1 0 >&4; exec sleep 60"} {
		if _, err := f.c.Upgrade(ctx, f.heir(then)); err == nil {
			t.Fatal("no error")
		}
		if v := f.eventually("v", "live"); v.ID != was.ID {
			t.Errorf("%+v", v)
		}
	}
	f.create("w", "j")
	select {
	case <-f.d.HandedOver():
		t.Error("the daemon is about to end")
	default:
	}
}

// Where neither of the two can go on, this one makes room for the next.
func TestUpgradeFailsForBoth(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	lock := filepath.Join(f.runDir(), "lock")
	if _, err := f.c.Upgrade(ctx, f.heir(fmt.Sprintf("rm %s; mkdir %s", lock, lock))); err == nil {
		t.Fatal("no error")
	}
	<-f.d.HandedOver()
	if f.d.Heir() != 0 {
		t.Error("there is an heir")
	}
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	f.die()
	f.start()
	f.eventually("v", "live")
}

// Who is told to stop in the middle of an upgrade leaves the heir's devices alone.
func TestShutdownDuringUpgrade(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.k.leftUsers = []device.User{mounted}
	upgraded := make(chan error, 1)
	go func() {
		_, err := f.d.Upgrade(ctx, f.heir("sleep 0.3; echo serving 0 >&4; exec sleep 1"))
		upgraded <- err
	}()
	waitFor(t, "that it is left", func() bool {
		dev, err := f.d.Device("v")
		return err == nil && dev.State == StateRecovering
	})
	force := make(chan struct{})
	close(force)
	if err := f.d.Shutdown(ctx, force); err != nil {
		t.Error(err)
	}
	if err := <-upgraded; err != nil || f.d.Heir() == 0 {
		t.Errorf("upgrade: %v, heir %d", err, f.d.Heir())
	}
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	if len(f.k.deleted) != 0 || !f.k.waiting[0] {
		t.Errorf("deleted %v, waiting %v", f.k.deleted, f.k.waiting)
	}
}
