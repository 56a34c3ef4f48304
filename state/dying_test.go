package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/hack/faultfs"
)

func init() {
	// A server that hangs in its storage.
	roles["hang"] = func(dir string) {
		run := filepath.Join(dir, "run")
		if _, err := LockDevice(context.Background(), run, "v", nil); err != nil {
			fmt.Println(err)
			return
		}
		image := filepath.Join(dir, "mnt", "image")
		var st unix.Stat_t
		err := unix.Stat(image, &st)
		if err == nil {
			err = NewClaims(run, "v").Add([]ClaimedFile{{image, FileIDOf(&st), true}})
		}
		fmt.Println(err)
		os.ReadFile(image)
	}
}

// TestDyingServer: a server that was killed and hangs in storage keeps its device's lock and its
// claims, as what it has begun may be written yet. The next one is told why it waits.
func TestDyingServer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for a FUSE mount")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	run, backing, mnt := filepath.Join(dir, "run"), filepath.Join(dir, "backing"), filepath.Join(dir, "mnt")
	for _, d := range []string{run, backing, mnt} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(backing, "image"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	fs, err := faultfs.Mount(backing, mnt, faultfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	rule := fs.Add(faultfs.Rule{Op: faultfs.Read, Hang: true})
	p := startRole(t, "hang", dir)
	if l := p.line(); l != "<nil>" {
		t.Fatal(l)
	}
	until := func(what string, is func() bool) {
		t.Helper()
		for begin := time.Now(); !is(); time.Sleep(time.Millisecond) {
			if time.Since(begin) > time.Minute {
				t.Fatal(what)
			}
		}
	}
	until("no read hangs", func() bool { return fs.Rule(rule).Hanging > 0 })
	pid := p.cmd.Process.Pid
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until("the process is not dying", func() bool { return api.Dying(pid) })

	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(mnt, "image"), &st); err != nil {
		t.Fatal(err)
	}
	image := ClaimedFile{"image", FileIDOf(&st), false}
	c := NewClaims(run, "w")
	defer c.Close()
	if err := c.Add([]ClaimedFile{image}); !errors.Is(err, ErrClaimed) {
		t.Errorf("a file of a dying server: %v", err)
	}
	wantProbe(t, run, pid, true)
	// Its storage answers when the next one has been told.
	l, err := LockDevice(t.Context(), run, "v", func(who int, dying bool) {
		if who != pid || !dying {
			t.Errorf("waits for process %d, dying: %v", who, dying)
		}
		fs.Remove(rule)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	if err := c.Add([]ClaimedFile{image}); err != nil {
		t.Errorf("when the server has ended: %v", err)
	}
}
