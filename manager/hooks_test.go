package manager

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"holdfast/api"
)

// hooked is a device whose hooks write what they are told to a file.
func (f *fixture) hooked(name string) (told func() string) {
	f.t.Helper()
	out := filepath.Join(f.dir, "out")
	path := filepath.Join(f.dir, "hook")
	script := "#!/bin/sh\necho \"$HOLDFAST_DEVICE $HOLDFAST_EVENT $HOLDFAST_STATE $HOLDFAST_PATH $HOLDFAST_CAUSE\" >>" + out + "\n[ $HOLDFAST_STATE = on ] || exit 7\n"
	spec := f.spec(name, "i")
	spec.OnStandby, spec.OnResumed = path, path
	_, err := f.c.Create(ctx, spec)
	wantCode(f.t, err, api.CodeInvalid) // not there
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.c.Create(ctx, spec); err != nil {
		f.t.Fatal(err)
	}
	f.arm(name)
	return func() string { b, _ := os.ReadFile(out); return string(b) }
}

func (f *fixture) standby(name string, on bool, why string) {
	f.t.Helper()
	if err := f.h.server(name).setStandby(on, why); err != nil {
		f.t.Fatal(err)
	}
}

func TestHooks(t *testing.T) {
	f := newFixture(t)
	told := f.hooked("v")
	f.standby("v", true, "a")
	f.h.server("v").event(api.EventParked, "x")
	f.standby("v", false, "b")
	want := "v standby on /dev/ublkb0 a\nv recovered off /dev/ublkb0 b\n"
	waitFor(t, "both hooks", func() bool { return told() == want })
	waitFor(t, "the failure's event", func() bool { return slices.Contains(f.events("v"), api.EventHookFailed) })
	// The next manager doesn't tell them again, and tells what came meanwhile.
	f.restart()
	f.eventually("v", api.StateLive)
	f.stop()
	f.standby("v", true, "c")
	f.standby("v", false, "d")
	f.standby("v", true, "e")
	f.start()
	want += "v standby on /dev/ublkb0 c\nv recovered off /dev/ublkb0 d\nv standby on /dev/ublkb0 e\n"
	waitFor(t, "what came without a manager", func() bool { return told() == want })
	// As a manager that is killed: how far it has read was saved before, not after.
	old, err := os.ReadFile(filepath.Join(f.run(), managerDir, "events.json"))
	if err != nil {
		t.Fatal(err)
	}
	f.standby("v", false, "f")
	want += "v recovered off /dev/ublkb0 f\n"
	waitFor(t, "the next hook", func() bool { return told() == want })
	f.stop()
	if err := os.WriteFile(filepath.Join(f.run(), managerDir, "events.json"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	f.start()
	f.standby("v", true, "g")
	want += "v standby on /dev/ublkb0 g\n"
	waitFor(t, "only what is new", func() bool { return told() == want })
	// Events are lost, and the device is in another state than its hook was told last.
	f.stop()
	f.standby("v", false, "h")
	f.h.server("v").lose()
	f.start()
	waitFor(t, "the state", func() bool { return told() == want+"v recovered off /dev/ublkb0 \n" })
	// And in the same.
	want = told()
	f.stop()
	f.standby("v", true, "i")
	f.standby("v", false, "j")
	f.h.server("v").lose()
	f.start()
	f.standby("v", true, "k")
	waitFor(t, "nothing but the next", func() bool { return told() == want+"v standby on /dev/ublkb0 k\n" })
}

// TestHookNotStarted: one that waits when the manager dies is started by the next.
func TestHookNotStarted(t *testing.T) {
	f := newFixture(t)
	told := f.hooked("v")
	f.standby("v", true, "a")
	waitFor(t, "the first hook", func() bool { return told() != "" })
	h := f.m.hooks
	waitFor(t, "its end", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return !h.queue("v").running })
	h.mu.Lock()
	q := h.queue("v")
	q.running = true // for ever: it is about to be started
	h.mu.Unlock()
	f.standby("v", false, "b")
	waitFor(t, "the second to wait", func() bool { return h.floor("v") != 0 })
	f.restart()
	waitFor(t, "the second hook", func() bool { return told() == "v standby on /dev/ublkb0 a\nv recovered off /dev/ublkb0 b\n" })
}

const hungHookEnv = "HOLDFAST_TEST_HUNG_HOOK"

// TestHungHook has a hook lie on storage that hangs: the manager, here a process of its own,
// lives on.
func TestHungHook(t *testing.T) {
	if path := os.Getenv(hungHookEnv); path != "" {
		started := make(chan struct{})
		go execute(zerolog.Nop(), "v", hook{path: path, env: os.Environ()}, func() { close(started) })
		<-started
		time.Sleep(300 * time.Millisecond) // until it hangs
		runtime.GC()
		fmt.Println("lives")
		os.Exit(0)
	}
	vm := os.Getenv("HOLDFAST_VM") != ""
	if vm {
		exec.Command("modprobe", "fuse").Run()
	}
	dir := t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		// Nobody ever answers.
		err = unix.Mount("hung", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
	}
	if err != nil {
		if vm {
			t.Fatal(err)
		}
		t.Skipf("no FUSE: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
	var out bytes.Buffer
	cmd := exec.Command(os.Args[0], "-test.run=^TestHungHook$")
	cmd.Env, cmd.Stdout = append(os.Environ(), hungHookEnv+"="+dir+"/hook"), &out
	// What it started holds the output open.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	limit := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer limit.Stop()
	if err := cmd.Wait(); !bytes.Contains(out.Bytes(), []byte("lives")) {
		t.Errorf("the manager stands still: %v", err)
	}
}
