package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"holdfast/hack/faultfs"
)

// TestReplaceByAnotherWay has an image on storage with two mounts, of which one dies. The
// device goes on by the other one, level by level, and takes no image but its own, unless it
// is forced to.
func TestReplaceByAnotherWay(t *testing.T) {
	needKernel(t)
	exec.Command("modprobe", "fuse").Run() // may be built in
	d := newDir(t)
	for _, name := range []string{"back", "a", "b"} {
		if err := os.Mkdir(d.file(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(name string) *faultfs.Storage {
		s, err := faultfs.Mount(d.file("back"), d.file(name), faultfs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	a, b := mount("a"), mount("b")
	d.ok("image", "create", "--size", "16M", d.file("back/base"))
	d.ok("image", "create", "--backing", d.file("back/base"), d.file("back/top"))
	d.ok("image", "create", "--size", "16M", d.file("back/stranger"))
	d.daemon("--targets", "none")
	disk := strings.TrimSpace(d.ok("create", "v", "--image", d.file("a/base"), "--image", d.file("a/top")))
	d.ok("standby-check", "on")
	d.ok("attach", "v", "--consumer", "me")

	follow, heard := d.background("events", "--follow", "--json", "--device", "v")
	d.until("the first event", func() bool { return len(d.read(heard)) > 0 })

	data := bytes.Repeat([]byte("held, not lost. "), 1<<16)
	d.write("data", bytes.ToUpper(data))
	copyIn := func() <-chan error {
		ended := make(chan error, 1)
		cmd := exec.Command("dd", "if="+d.file("data"), "of="+disk, "bs=64k", "oflag=direct", "conv=fsync", "status=none")
		go func() { ended <- cmd.Run() }()
		return ended
	}
	isOn := func() bool { return strings.TrimSpace(d.ok("standby", "v", "status")) == "on" }
	held := func() bool { return strings.TrimSpace(d.ok("attr", "get", "block/v/held")) != "0" }

	// Two images in which nothing is stored couldn't be told apart.
	if err := <-copyIn(); err != nil {
		t.Fatal(err)
	}
	d.write("data", data)
	a.Dead(syscall.ENOTCONN)
	wait := copyIn()
	d.until("standby with a held request", func() bool { return isOn() && held() })
	d.fails(1, "connected", "replace", "v", d.file("a/top"))
	d.fails(1, "as the device knows it", "replace", "v", d.file("b/stranger"))
	d.fails(2, "level 1", "replace", "v", "--level", "7", d.file("b/top"))
	d.fails(1, "nothere", "replace", "v", d.file("b/nothere"))
	if out := d.ok("replace", "v", "--level", "0", d.file("b/base")); !strings.Contains(out, "level 0 is "+d.file("b/base")+"; standby is on") {
		t.Errorf("%s", out)
	}
	select {
	case err := <-wait:
		t.Fatalf("the writer did not wait: %v", err)
	default:
	}
	if out := d.ok("replace", "v", d.file("b/top")); !strings.Contains(out, "level 1 is "+d.file("b/top")+"; standby is off") {
		t.Errorf("%s", out)
	}
	if err := <-wait; err != nil {
		t.Errorf("the writer saw %v", err)
	}
	same := func() bool {
		got, err := exec.Command("dd", "if="+disk, "bs=64k", "count=16", "iflag=direct", "status=none").Output()
		if err != nil {
			t.Errorf("reading: %v", err)
		}
		return bytes.Equal(got, data)
	}
	if !same() {
		t.Error("the data is not what was written")
	}
	if images := d.object("show", "v")["images"].([]any); images[1].(map[string]any)["path"] != d.file("b/top") {
		t.Errorf("images %v", images)
	}

	// Giving up: what is held fails.
	b.Dead(syscall.EIO)
	wait = copyIn()
	d.until("standby with a held request", func() bool { return isOn() && held() })
	if out := d.ok("standby", "v", "off"); !strings.Contains(out, "held, which failed or are failing") && !strings.Contains(out, "standby is on") {
		t.Errorf("%s", out)
	}
	// Whatever it still does fails as well, and may only be waited for once more.
	b.Dead(0)
	if isOn() {
		d.ok("replace", "v", d.file("b/top"))
	}
	if err := <-wait; err == nil {
		t.Error("given up, and the writer saw no error")
	}

	// By force any image of the size will do; it is empty.
	d.fails(1, "--force", "replace", "v", d.file("b/stranger"))
	d.ok("replace", "v", "--force", d.file("b/stranger"))
	if same() {
		t.Error("another image, and the same data")
	}
	d.ok("remove", "v")
	d.until("the last event", func() bool { return bytes.Contains(d.read(heard), []byte(`"removed"`)) })
	follow.Process.Signal(syscall.SIGINT)
	if err := follow.Wait(); err != nil {
		t.Errorf("events --follow: %v", err)
	}
	var kinds []string
	for line := range bytes.Lines(d.read(heard)) {
		var e struct{ Kind, Device string }
		if err := json.Unmarshal(line, &e); err != nil || e.Device != "v" {
			t.Errorf("%s: %v", line, err)
		}
		kinds = append(kinds, e.Kind)
	}
	all := " " + strings.Join(kinds, " ") + " "
	for _, kind := range []string{"created", "attached", "standby", "replace-failed", "replaced", "recovered", "standby-cleared", "removed"} {
		if !strings.Contains(all, " "+kind+" ") {
			t.Errorf("no %s among%s", kind, all)
		}
	}
}

// background runs the program beside the test, its output in a file.
func (d dir) background(args ...string) (cmd *exec.Cmd, output string) {
	d.t.Helper()
	self, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	output = "output-" + args[0]
	out, err := os.Create(filepath.Join(d.path, output))
	if err != nil {
		d.t.Fatal(err)
	}
	defer out.Close()
	cmd = exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asHoldfast+"=1", "HOLDFAST_RUN_DIR="+d.file("run"))
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, output
}
