package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/ublk"
)

// needKernel is for tests with real devices. In a VM of hack/vm, which sets
// HOLDFAST_VM, they must run; elsewhere they do for root where there is a driver.
func needKernel(t *testing.T) {
	t.Helper()
	inVM := os.Getenv("HOLDFAST_VM") != ""
	if inVM {
		if out, err := exec.Command("modprobe", "ublk_drv").CombinedOutput(); err != nil {
			t.Fatalf("modprobe ublk_drv: %v: %s", err, out)
		}
	}
	ctl, err := ublk.Open("")
	if err == nil {
		ctl.Close()
	} else if inVM {
		t.Fatal(err)
	} else {
		t.Skip(err)
	}
}

func (d dir) sh(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// create makes an image and serves it; the answer is the path and a newline.
func (d dir) create(name string, args ...string) string {
	d.t.Helper()
	if _, err := os.Stat(d.file(name + ".hds")); err != nil {
		d.ok("image", "create", "--size", "64M", d.file(name+".hds"))
	}
	out := d.ok(append([]string{"create", name, "--image", d.file(name + ".hds")}, args...)...)
	path := strings.TrimSuffix(out, "\n")
	if fi, err := os.Stat(path); err != nil || fi.Mode()&os.ModeDevice == 0 || strings.ContainsAny(path, " \n") {
		d.t.Fatalf("create printed %q", out)
	}
	return path
}

// mount makes a file system on first use and mounts it.
func (d dir) mount(path string, fresh bool) {
	d.t.Helper()
	if fresh {
		d.sh("mkfs.ext4", "-q", path)
	}
	os.Mkdir(d.file("mnt"), 0o755)
	d.sh("mount", path, d.file("mnt"))
	d.t.Cleanup(func() { syscall.Unmount(d.file("mnt"), syscall.MNT_DETACH) })
}

func (d dir) umount() {
	d.t.Helper()
	if err := syscall.Unmount(d.file("mnt"), 0); err != nil {
		d.t.Fatalf("umount: %v", err)
	}
}

func (d dir) clean(name string) {
	d.t.Helper()
	d.ok("image", "check", d.file(name+".hds"))
	if d.object("image", "info", d.file(name+".hds"))["in_use"] != false {
		d.t.Errorf("%s is still marked in use", name)
	}
}

// ends waits for a manager's end and returns its exit code.
func (d dir) ends(cmd *exec.Cmd) int {
	d.t.Helper()
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	select {
	case <-ended:
		return cmd.ProcessState.ExitCode()
	case <-time.After(time.Minute):
		cmd.Process.Signal(syscall.SIGQUIT)
		<-ended
		d.t.Fatalf("the manager does not end:\n%s", d.read("log"))
		return -1
	}
}

func TestKernelDevice(t *testing.T) {
	needKernel(t)
	d := newDir(t)
	d.daemon()
	path := d.create("vol")
	d.mount(path, true)
	d.fails(4, "mounted on "+d.file("mnt"), "remove", "vol")
	list := d.ok("list")
	if !strings.Contains(list, path) || !strings.Contains(list, d.file("mnt")) {
		t.Errorf("%s", list)
	}
	show := d.object("show", "vol")
	if show["state"] != "live" || show["counters"].(map[string]any)["writes"] == float64(0) {
		t.Errorf("%v", show)
	}
	// By any name of its disk, but for other disks'.
	link := d.file("by-some-name")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, filepath.Base(path), link} {
		if show := d.object("show", name); show["name"] != "vol" {
			t.Errorf("%s: %v", name, show)
		}
	}
	d.fails(2, "not a block device", "show", "/dev/null")
	if got := d.ok("wait", "vol", "lost", "live", "--timeout", "1m"); got != "live\n" {
		t.Errorf("%q", got)
	}
	d.fails(7, "is live", "wait", "vol", "standby", "--timeout", "0s")
	d.fails(1, `belongs to device "vol"`, "create", "other", "--image", d.file("vol.hds"))
	d.fails(1, "exists already", "create", "vol", "--image", d.file("vol.hds"))
	d.fails(1, "", "image", "check", "--repair", d.file("vol.hds")) // locked
	d.umount()

	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	d.fails(4, "open in process", "remove", "vol")
	f.Close()
	gone, _ := d.background("wait", "vol", "removed", "--timeout", "1m")
	d.ok("remove", path)
	if code := d.ends(gone); code != 0 {
		t.Errorf("the wait for its end: exit %d", code)
	}
	d.clean("vol")
	if _, err := os.Stat(path); err == nil {
		t.Error("the device is still there")
	}

	// By force under a mounted file system: whole images all the same.
	d.mount(d.create("vol"), false)
	d.ok("remove", "vol", "--force")
	d.clean("vol")
}

func TestKernelSIGTERM(t *testing.T) {
	needKernel(t)
	d := newDir(t)
	cmd := d.daemon()
	d.mount(d.create("busy"), true)
	idle := d.create("idle", "--data-path", "copy", "--queues", "1", "--depth", "16")
	cmd.Process.Signal(syscall.SIGTERM)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(idle); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the idle device stays:\n%s", d.read("log"))
		}
	}
	if err := os.WriteFile(d.file("mnt/x"), []byte("still here"), 0o600); err != nil {
		t.Error(err)
	}
	d.fails(1, "being stopped", "create", "new", "--image", d.file("idle.hds"))
	d.umount()
	if code := d.ends(cmd); code != 0 {
		t.Errorf("exit %d:\n%s", code, d.read("log"))
	}
	d.clean("busy")
	d.clean("idle")

	// And a second signal, under the mounted file system.
	cmd = d.daemon()
	d.mount(d.create("busy"), false)
	cmd.Process.Signal(syscall.SIGTERM)
	d.until("the report of the user", func() bool { return bytes.Contains(d.read("run/devices/busy/log"), []byte("not removed yet")) })
	cmd.Process.Signal(syscall.SIGTERM)
	if code := d.ends(cmd); code != 0 {
		t.Errorf("exit %d:\n%s", code, d.read("log"))
	}
	d.clean("busy")
	syscall.Unmount(d.file("mnt"), syscall.MNT_DETACH)

	// Or the end of its patience.
	cmd = d.daemon("--stop-timeout", "1s")
	d.mount(d.create("busy"), false)
	if err := os.WriteFile(d.file("mnt/y"), []byte("not synced"), 0o600); err != nil {
		t.Error(err)
	}
	said, err := os.Open(d.file("run/devices/busy/log")) // which goes with the device
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	cmd.Process.Signal(syscall.SIGTERM)
	if code := d.ends(cmd); code != 0 {
		t.Errorf("exit %d:\n%s", code, d.read("log"))
	}
	if text, err := io.ReadAll(said); err != nil || !bytes.Contains(text, []byte("--stop-timeout")) {
		t.Errorf("%v: %s", err, text)
	}
	d.clean("busy")
	syscall.Unmount(d.file("mnt"), syscall.MNT_DETACH)
	d.daemon()
	d.mount(d.create("busy"), false)
	if got := d.read("mnt/y"); string(got) != "not synced" {
		t.Errorf("%q", got)
	}
	d.umount()
}

// TestKernelKilled: the users of a device whose server and manager were killed see a pause, those
// of one whose daemon was killed see nothing, and a stranger's in-use mark is not taken for ours.
func TestKernelKilled(t *testing.T) {
	needKernel(t)
	d := newDir(t)
	kill := func(cmd *exec.Cmd) {
		cmd.Process.Kill()
		cmd.Wait()
		d.killServers()
	}
	live := func() bool { return d.object("show", "vol")["state"] == "live" }
	cmd := d.daemon()
	path := d.create("vol")
	d.mount(path, true)
	if err := os.WriteFile(d.file("mnt/x"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	kill(cmd)
	written := make(chan error, 1)
	go func() { // waits for the next server
		err := os.WriteFile(d.file("mnt/y"), []byte("kept, too"), 0o600)
		if err == nil {
			err = exec.Command("sync", "-f", d.file("mnt/y")).Run()
		}
		written <- err
	}()
	cmd = d.daemon()
	d.until("the recovery", live)
	if err := <-written; err != nil {
		t.Error(err)
	}
	os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	if x, y := d.read("mnt/x"), d.read("mnt/y"); string(x) != "kept" || string(y) != "kept, too" {
		t.Errorf("%q, %q", x, y)
	}
	if show := d.object("show", "vol"); show["path"] != path {
		t.Errorf("%v, was %s", show["path"], path)
	}
	d.umount()
	kill(cmd)
	cmd = d.daemon()
	d.until("the recovery", live)

	// The manager alone.
	server := func(show map[string]any) any { return show["server"].(map[string]any)["pid"] }
	before := server(d.object("show", "vol"))
	cmd.Process.Kill()
	cmd.Wait()
	d.mount(path, false)
	if y := d.read("mnt/y"); string(y) != "kept, too" {
		t.Errorf("%q", y)
	}
	d.umount()
	if r := d.holdfast("show", "vol"); r.code != 0 || !strings.Contains(r.out, path) || !strings.Contains(r.errors, "the manager is away") {
		t.Errorf("without a manager: %+v", r)
	}
	cmd = d.daemon()
	d.until("the adoption", live)
	if pid := server(d.object("show", "vol")); pid != before {
		t.Errorf("process %v serves it, and before the manager's death %v did", pid, before)
	}
	d.ok("remove", "vol")
	d.clean("vol")

	path = d.create("vol")
	kill(cmd)
	for _, records := range []string{"state", "run/devices"} {
		if err := os.RemoveAll(d.file(records)); err != nil {
			t.Fatal(err)
		}
	}
	d.daemon()
	orphan := filepath.Base(path)
	d.until("the device without a record", func() bool { return strings.Contains(d.holdfast("list").errors, orphan) })
	d.fails(4, "--force", "remove", orphan)
	d.fails(1, "in_use", "create", "vol", "--image", d.file("vol.hds"))
	d.ok("remove", "--force", orphan)
	d.ok("image", "check", "--repair", d.file("vol.hds"))
	d.create("vol")
	d.ok("remove", "vol")
}
