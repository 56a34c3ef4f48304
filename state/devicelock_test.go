package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	roles["lock"] = func(dir string) {
		l, err := LockDevice(context.Background(), dir, "v", nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("locked")
		io.Copy(io.Discard, os.Stdin)
		l.Release()
	}
}

func wantProbe(t *testing.T, dir string, pid int, held bool) {
	t.Helper()
	if p, h := Probe(dir, "v"); p != pid || h != held {
		t.Errorf("process %d, held: %v, want %d, %v", p, h, pid, held)
	}
}

// TestDeviceLock: the next server waits for the one before, knows which it is, and has the
// lock when that has ended, however.
func TestDeviceLock(t *testing.T) {
	dir := t.TempDir()
	wantProbe(t, dir, 0, false)
	p := startRole(t, "lock", dir)
	if l := p.line(); l != "locked" {
		t.Fatal(l)
	}
	wantProbe(t, dir, p.cmd.Process.Pid, true)

	ctx, cancel := context.WithCancel(t.Context())
	_, err := LockDevice(ctx, dir, "v", func(pid int, dying bool) {
		if pid != p.cmd.Process.Pid || dying {
			t.Errorf("waits for %d, dying: %v", pid, dying)
		}
		cancel()
	})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), strconv.Itoa(p.cmd.Process.Pid)) {
		t.Errorf("gave up: %v", err)
	}
	calls := 0
	l, err := LockDevice(t.Context(), dir, "v", func(int, bool) { calls++; p.kill() })
	if err != nil || calls != 1 {
		t.Fatalf("%v, %d calls", err, calls)
	}
	wantProbe(t, dir, os.Getpid(), true)
	l.Release()
	wantProbe(t, dir, 0, false)
}

// TestDeviceLockFile: what a dead process, or somebody else, left in the file means nothing.
func TestDeviceLockFile(t *testing.T) {
	dir := t.TempDir()
	path := Run(dir).Device("v").Lock()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"", "1\n", strings.Repeat("9", 100), "\x00\x00", "-5\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		wantProbe(t, dir, 0, false)
		l, err := tryDeviceLock(Run(dir).Device("v"))
		if err != nil || l == nil {
			t.Fatal(l, err)
		}
		wantProbe(t, dir, os.Getpid(), true)
		// Before the process has put its number there.
		if err := setLock(l.file, unix.F_UNLCK, lockPID); err != nil {
			t.Fatal(err)
		}
		wantProbe(t, dir, 0, true)
		l.Release()
	}
}

// TestDeviceLockInTheWay: what is no directory is an error, and not waited for.
func TestDeviceLockInTheWay(t *testing.T) {
	dir := t.TempDir()
	path := string(Run(dir).Device("v"))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for what, put := range map[string]func() error{
		"a file":                 func() error { return os.WriteFile(path, nil, 0o600) },
		"a link that leads away": func() error { return os.Symlink("nowhere", path) },
	} {
		if err := put(); err != nil {
			t.Fatal(err)
		}
		if l, err := tryDeviceLock(Run(dir).Device("v")); err == nil {
			t.Errorf("%s: no error, lock %v", what, l)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDeviceLockRace: at any time one has the lock, also while the directory is removed, and who
// only asks keeps nobody from getting it.
func TestDeviceLockRace(t *testing.T) {
	dir := t.TempDir()
	var inside atomic.Int32
	var took atomic.Int32
	stop := make(chan struct{})
	var asking, wg sync.WaitGroup
	for range 2 {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if pid, held := Probe(dir, "v"); pid != 0 && (!held || pid != os.Getpid()) {
					t.Errorf("process %d, held: %v", pid, held)
				}
			}
		})
	}
	for i := range 4 {
		wg.Go(func() {
			for range 100 {
				l, err := tryDeviceLock(Run(dir).Device("v"))
				if err != nil {
					t.Error(err)
				}
				if l == nil {
					continue
				}
				took.Add(1)
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d have the lock", n)
				}
				inside.Add(-1)
				if i%2 == 0 {
					if err := l.Remove(); err != nil {
						t.Error(err)
					}
				} else {
					l.Release()
				}
			}
		})
	}
	wg.Wait()
	// Nobody but those who ask is left.
	for range 100 {
		l, err := tryDeviceLock(Run(dir).Device("v"))
		if l == nil {
			t.Fatalf("kept from the lock by who asks: %v", err)
		}
		l.Release()
	}
	close(stop)
	asking.Wait()
	if took.Load() == 0 {
		t.Error("nobody had the lock")
	}
}

// TestDeviceRemoved: nothing of a device is left, and the next one begins anew.
func TestDeviceRemoved(t *testing.T) {
	r := Run(t.TempDir())
	l, err := LockDevice(t.Context(), string(r), "v", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{r.Device("v").Events(), r.Device("v").Log(), r.Device("v").Record()} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Remove(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(r.Devices()); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
	if l, err = LockDevice(t.Context(), string(r), "v", nil); err != nil {
		t.Fatal(err)
	}
	l.Release()
}
