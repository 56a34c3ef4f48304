package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/api"
	"holdfast/server/device"
	"holdfast/state"
)

// heir is a program that gets ready to take over, and then does something else.
func (f *fixture) heir(then string) api.UpgradeRequest {
	f.t.Helper()
	path := filepath.Join(f.dir, "heir")
	text := fmt.Sprintf("#!/bin/sh\necho ready >&%d\nread go <&%d\n%s\nexit 1\n", heirReport, heirGo, then)
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		f.t.Fatal(err)
	}
	return api.UpgradeRequest{Binary: path}
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
	f.k.leftUsers = []api.User{mounted}
	upgraded := make(chan error, 1)
	go func() {
		_, err := f.d.Upgrade(ctx, f.heir("sleep 0.3; echo serving 0 >&4; exec sleep 1"))
		upgraded <- err
	}()
	waitFor(t, "that it is left", func() bool {
		dev, err := f.d.Device("v")
		return err == nil && dev.State == api.StateRecovering
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

// What another server couldn't take over isn't left.
func TestUpgradeExaminesFirst(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.create("w", "j")
	f.k.mu.Lock()
	f.k.examineErr = map[string]error{"w": errors.New("it is shorter")}
	opened := f.k.opening
	f.k.mu.Unlock()
	_, err := f.c.Upgrade(ctx, f.heir("echo serving 0 2 >&4; exec sleep 60"))
	if err == nil || !strings.Contains(err.Error(), `device "w": it is shorter`) || !strings.Contains(err.Error(), "nothing has changed") {
		t.Fatal(err)
	}
	// Another file by the same name.
	f.k.mu.Lock()
	f.k.examineErr = nil
	f.k.mu.Unlock()
	i := filepath.Join(f.dir, "i")
	if err := errors.Join(os.Rename(i, i+".old"), os.WriteFile(i, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.c.Upgrade(ctx, f.heir("echo serving 0 2 >&4; exec sleep 60")); err == nil || !strings.Contains(err.Error(), `device "v"`) {
		t.Fatal(err)
	}
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	if f.k.opening != opened || len(f.k.waiting) > 0 {
		t.Errorf("devices were left: opened %d times, then %d; waiting %v", opened, f.k.opening, f.k.waiting)
	}
}

// An upgrade that failed says what came of the devices, and doesn't say that of those that wait.
func TestUpgradeSaysWhatWaits(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	if _, err := f.c.Upgrade(ctx, f.heir("")); err == nil || !strings.Contains(err.Error(), "taken back all devices that were left (1)") {
		t.Fatal(err)
	}
	f.k.mu.Lock()
	f.k.d("v").leaving = func() { f.k.openErr = errors.New("no such luck") }
	f.k.mu.Unlock()
	_, err := f.c.Upgrade(ctx, f.heir(""))
	if err == nil || !strings.Contains(err.Error(), "0 of the 1") || !strings.Contains(err.Error(), "no such luck") {
		t.Fatal(err)
	}
	f.k.mu.Lock()
	f.k.openErr = nil
	f.k.mu.Unlock()
	f.eventually("v", "live")
}

// A device that was left in order needs no fence. What the next server has noted counts, when this
// one goes on after all.
func TestUpgradeLeavesInOrder(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	var first, again bool
	f.k.mu.Lock()
	f.k.recovered = func(r device.Recovery) { first = r.Left }
	f.k.mu.Unlock()
	if _, err := f.c.Upgrade(ctx, f.heir("")); err == nil {
		t.Fatal("no error")
	}
	if !first {
		t.Error("it was left in order, and recovered as if not")
	}
	f.eventually("v", "live")
	// The other one has opened the image, and died with it.
	f.k.mu.Lock()
	f.k.recovered = func(r device.Recovery) { again = r.Left }
	f.k.d("v").leaving = func() {
		go func() {
			waitFor(t, "that this is noted", func() bool {
				rec, err := state.ReadRecord(f.d.records.Path("v"))
				if err != nil || !rec.Left {
					return false
				}
				rec.Left = false
				return f.d.records.Save(rec) == nil
			})
		}()
	}
	f.k.mu.Unlock()
	if _, err := f.c.Upgrade(ctx, f.heir("sleep 0.5")); err == nil {
		t.Fatal("no error")
	}
	if again {
		t.Error("another server had it in between, and it was recovered without a fence")
	}
}
