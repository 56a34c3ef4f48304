package story

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"holdfast/api"
	"holdfast/hack/tool"
)

// needVM skips a test that must not run on a machine that somebody uses.
func needVM(t *testing.T) {
	t.Helper()
	if os.Getenv("HOLDFAST_VM") == "" {
		t.Skip("runs in the VM only: make vm")
	}
}

// daemon is a holdfast of the test's own.
type daemon struct {
	t       *testing.T
	dir     string
	path    string   // of the program
	options []string // of `holdfast daemon`
	cmd     *exec.Cmd
	ended   bool
}

// startDaemon starts one; options go to `holdfast daemon`. It ends with the
// test, after the devices, targets and sessions that were made on it.
func startDaemon(t *testing.T, options ...string) *daemon {
	t.Helper()
	needVM(t)
	must(t, tool.Run("modprobe", "ublk_drv"))
	d := &daemon{t: t, dir: t.TempDir(), path: os.Getenv("HOLDFAST_BINARY"), options: options}
	if d.path == "" {
		var err error
		d.path, err = filepath.Abs("../../bin/holdfast")
		must(t, err)
	}
	if _, err := os.Stat(d.path); err != nil {
		t.Fatalf("%v: make build", err)
	}
	d.start()
	t.Cleanup(func() {
		// It has no devices any more; it takes its tree down, which a killed one
		// would leave.
		d.cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(time.Minute, func() { d.cmd.Process.Kill() })
		defer timer.Stop()
		if err := d.cmd.Wait(); err != nil {
			t.Errorf("the daemon: %v", err)
			syscall.Unmount(d.dir+"/run/sys", syscall.MNT_DETACH)
		}
		if t.Failed() {
			logTails(t, d.dir+"/log", d.dir+"/run/devices/*/log")
		}
	})
	return d
}

// start starts it and waits until it answers.
func (d *daemon) start() {
	d.t.Helper()
	log, err := os.OpenFile(d.dir+"/log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	must(d.t, err)
	defer log.Close()
	d.cmd = exec.Command(d.path, append([]string{"daemon", "--state-dir", d.dir + "/state", "--log-format", "json"}, d.options...)...)
	d.cmd.Env = d.env()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	must(d.t, d.cmd.Start())
	d.ended = false
	if err := wait(time.Minute, func() error { _, err := d.run("list"); return err }); err != nil {
		d.t.Fatalf("the daemon does not answer: %v", err)
	}
}

// kill kills the daemon. If it is a manager, its devices are served nonetheless.
func (d *daemon) kill() {
	d.t.Helper()
	must(d.t, d.cmd.Process.Kill())
	d.cmd.Wait()
	d.ended = true
}

// needServers skips a test of devices that outlive the daemon.
func (d *daemon) needServers() {
	d.t.Helper()
	dir, name := filepath.Split(d.path)
	if _, err := os.Stat(filepath.Join(dir, strings.Replace(name, "holdfast", "holdfast-serve", 1))); err != nil {
		d.t.Skip("the daemon serves all devices itself: there is no holdfast-serve beside it")
	}
}

func (d *daemon) env() []string { return append(os.Environ(), "HOLDFAST_RUN_DIR="+d.dir+"/run") }

// run runs a holdfast command.
func (d *daemon) run(args ...string) (string, error) {
	cmd := exec.Command(d.path, args...)
	cmd.Env = d.env()
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("holdfast %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// ok runs a command that must succeed.
func (d *daemon) ok(args ...string) string {
	d.t.Helper()
	out, err := d.run(args...)
	must(d.t, err)
	return out
}

// create makes an image and serves it; the answer is the block device.
func (d *daemon) create(name, image string, options ...string) string {
	d.t.Helper()
	// Small clusters: the story is to meet allocations too.
	d.ok("image", "create", "--size", strconv.Itoa(diskSize), "--cluster-size", "64K", image)
	return d.serve(name, append([]string{"--image", image}, options...)...)
}

// serve makes a device, which is removed with the test.
func (d *daemon) serve(name string, options ...string) string {
	d.t.Helper()
	disk := d.ok(append([]string{"create", name}, options...)...)
	d.t.Cleanup(func() {
		if _, err := d.run("remove", name, "--force"); err != nil {
			d.t.Error(err)
		}
	})
	return disk
}

// checkAfter checks images when the devices that are made after this call are
// gone.
func (d *daemon) checkAfter(images ...string) {
	d.t.Helper()
	d.t.Cleanup(func() {
		if _, err := d.run(append([]string{"image", "check"}, images...)...); err != nil {
			d.t.Error(err)
		}
	})
}

// status is what `holdfast show` tells of a device.
func (d *daemon) status(name string) api.Status {
	d.t.Helper()
	var s api.Status
	if err := json.Unmarshal([]byte(d.ok("show", name, "--json")), &s); err != nil {
		d.t.Fatal(err)
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func output(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// aligned is a buffer for O_DIRECT.
func aligned(size int) []byte {
	b := make([]byte, size+4096)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & 4095
	return b[skip:][:size]
}

// logTails shows the ends of log files, for a test that has failed.
func logTails(t *testing.T, patterns ...string) {
	t.Helper()
	for _, pattern := range patterns {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil || len(text) == 0 {
				continue
			}
			t.Logf("the end of %s:\n%s", file, text[max(0, len(text)-1500):])
		}
	}
}

// since is for logs.
func since(t time.Time) time.Duration { return time.Since(t).Round(10 * time.Millisecond) }
