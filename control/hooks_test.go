package control

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

const hungHookEnv = "HOLDFAST_TEST_HUNG_HOOK"

// TestHungHook has a hook lie on storage that hangs: the daemon, here a process of its own,
// lives on.
func TestHungHook(t *testing.T) {
	if path := os.Getenv(hungHookEnv); path != "" {
		d := &Daemon{log: zerolog.Nop()}
		go d.exec("v", hook{path: path, env: os.Environ()})
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
		t.Errorf("the daemon stands still: %v", err)
	}
}
