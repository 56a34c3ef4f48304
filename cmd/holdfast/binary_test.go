package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/hack/faultfs"
	"holdfast/server/process"
	"holdfast/state"
)

// asHoldfast turns the test binary into the real program: same code, own
// process, nothing to build.
const asHoldfast = "HOLDFAST_TEST_MAIN"

// asServe turns it into holdfast-serve.
const asServe = "HOLDFAST_TEST_SERVE"

func TestMain(m *testing.M) {
	faultfs.Child() // storage that fails on demand is a process of its own
	if os.Getenv(asServe) != "" {
		os.Exit(process.Main(os.Args[1:]))
	}
	if os.Getenv(asHoldfast) != "" {
		if os.Getenv(asHoldfast) != "again" { // it isn't to execute itself
			os.Unsetenv(asHoldfast)
		}
		main()
	}
	os.Exit(m.Run())
}

// binary makes a program that behaves as holdfast.
func binary(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "holdfast")
	script := "#!/bin/sh\n" + asHoldfast + "=1 exec '" + self + "' \"$@\"\n"
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// serveBinary makes a program that behaves as holdfast-serve.
func (d dir) serveBinary() string {
	d.t.Helper()
	self, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	path := d.file("holdfast-serve")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+asServe+"=1 exec '"+self+"' \"$@\"\n"), 0o700); err != nil {
		d.t.Fatal(err)
	}
	return path
}

// result is how a run of the program ended.
type result struct {
	code        int
	out, errors string
}

// holdfast runs the program in a directory of its own.
func (d dir) holdfast(args ...string) result {
	d.t.Helper()
	self, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Dir = d.path
	cmd.Env = append(os.Environ(), asHoldfast+"=1", "HOLDFAST_RUN_DIR="+d.file("run"), "HOLDFAST_SERVE_BINARY="+d.serveBinary())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// ok runs the program and returns its output; any complaint fails the test.
func (d dir) ok(args ...string) string {
	d.t.Helper()
	r := d.holdfast(args...)
	if r.code != 0 || r.errors != "" {
		d.t.Fatalf("holdfast %q: exit %d: %s%s", args, r.code, r.out, r.errors)
	}
	return r.out
}

// fails runs the program, which must exit with code and one line that has the
// words.
func (d dir) fails(code int, words string, args ...string) {
	d.t.Helper()
	r := d.holdfast(args...)
	if r.code != code || !strings.HasPrefix(r.errors, "holdfast: ") || strings.Count(r.errors, "\n") != 1 || !strings.Contains(r.errors, words) {
		d.t.Errorf("holdfast %q: exit %d (want %d): stdout %q, stderr %q (want %q)", args, r.code, code, r.out, r.errors, words)
	}
}

type dir struct {
	t    *testing.T
	path string
}

func newDir(t *testing.T) dir { return dir{t, t.TempDir()} }

func (d dir) file(name string) string { return filepath.Join(d.path, name) }

func (d dir) write(name string, data []byte) {
	d.t.Helper()
	if err := os.WriteFile(d.file(name), data, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d dir) read(name string) []byte {
	d.t.Helper()
	b, err := os.ReadFile(d.file(name))
	if err != nil {
		d.t.Fatal(err)
	}
	return b
}

// object runs a command with --json.
func (d dir) object(args ...string) map[string]any {
	d.t.Helper()
	m := map[string]any{}
	if err := json.Unmarshal([]byte(d.ok(append(args, "--json")...)), &m); err != nil {
		d.t.Fatal(err)
	}
	return m
}

func TestImageCommands(t *testing.T) {
	d := newDir(t)
	d.ok("image", "create", "a.hds", "--size", "64M")
	info := d.object("image", "info", "a.hds")
	if info["size"] != float64(64<<20) || info["cluster_size"] != float64(1<<20) || info["format"] != "ploop2" || info["in_use"] != false {
		t.Errorf("%v", info)
	}
	if out := d.ok("image", "info", "a.hds"); !strings.Contains(out, "size 64M (67108864 bytes)") {
		t.Errorf("%s", out)
	}
	d.ok("image", "check", "a.hds")
	d.fails(1, "exist", "image", "create", "--size", "64M", "a.hds")
	d.fails(1, "nothere", "image", "info", "nothere")
	d.fails(1, "nothere", "image", "check", "nothere")

	d.ok("image", "create", "--format=1", "v1.hds", "--size=16M", "--cluster-size", "64K")
	info = d.object("image", "info", "v1.hds")
	if info["format"] != "ploop1" || info["cluster_size"] != float64(64<<10) {
		t.Errorf("%v", info)
	}

	// The name of a file may be anything.
	odd := "a\nb\x1b[2J \"x\""
	d.ok("image", "create", "--size", "1M", "--", odd)
	for _, sub := range []string{"info", "check", "map"} {
		if out := d.ok("image", sub, odd); strings.ContainsAny(out, "\x1b") || strings.Contains(out, odd) {
			t.Errorf("%s: %q", sub, out)
		}
	}
	d.fails(1, "", "image", "info", "x\n\x1b")

	d.write("raw", make([]byte, 4096))
	d.fails(1, "raw@FILE", "image", "info", "raw")
	d.ok("image", "info", "raw@raw")
}

func TestImageConvertAndMap(t *testing.T) {
	d := newDir(t)
	data := make([]byte, 4<<20)
	for i := range 512 {
		data[1<<20+i] = byte(i) | 1
	}
	d.write("in.raw", data)
	d.ok("image", "convert", "in.raw", "a.hds", "--from", "raw")
	d.fails(1, "exist", "image", "convert", "raw@in.raw", "a.hds")
	d.ok("image", "convert", "a.hds", "--format", "1", "b.hds", "--cluster-size", "256K")
	d.ok("image", "convert", "b.hds", "out.raw")
	if !bytes.Equal(d.read("out.raw"), data) {
		t.Error("the data came back different")
	}
	var st syscall.Stat_t
	if err := syscall.Stat(d.file("out.raw"), &st); err != nil || st.Blocks*512 > 2<<20 {
		t.Errorf("the output stores %d bytes, %v", st.Blocks*512, err)
	}
	var extents []map[string]any
	if err := json.Unmarshal([]byte(d.ok("image", "map", "a.hds", "--json")), &extents); err != nil || len(extents) != 3 {
		t.Fatalf("%v, %v", extents, err)
	}
	if e := extents[1]; e["start"] != float64(1<<20) || e["data"] != true || e["file"] != "a.hds" {
		t.Errorf("%v", e)
	}
	if lines := strings.Count(d.ok("image", "map", "a.hds"), "\n"); lines != 4 {
		t.Errorf("%d lines", lines)
	}
	d.ok("image", "create", "--backing", "a.hds", "top.hds")
	d.ok("image", "check", "a.hds", "top.hds")
	d.ok("image", "map", "a.hds", "top.hds")
}

func TestImageCheckExitCodes(t *testing.T) {
	d := newDir(t)
	d.ok("image", "create", "a.hds", "--size", "64M")
	good := d.read("a.hds")
	put := func(off int, b ...byte) []byte {
		data := append(bytes.Clone(good), make([]byte, 2<<20)...)
		copy(data[off:], b)
		return data
	}
	check := func(want int, args ...string) string {
		t.Helper()
		r := d.holdfast(append([]string{"image", "check", "a.hds"}, args...)...)
		if r.code != want || r.errors != "" {
			t.Errorf("%q: exit %d, want %d: %s%s", args, r.code, want, r.out, r.errors)
		}
		return r.out
	}
	d.write("a.hds", put(0)) // space that nothing refers to
	if out := check(3); !strings.Contains(out, "2 leaked clusters") {
		t.Errorf("%s", out)
	}
	check(3, "--json")
	check(0, "--repair")
	check(0)
	d.write("a.hds", put(64, 1, 0, 0, 0, 1, 0, 0, 0)) // two entries for one place
	if out := check(2); !strings.Contains(out, "bat-duplicate") {
		t.Errorf("%s", out)
	}
	check(2, "--repair")
	d.write("a.hds", []byte("short"))
	d.fails(1, "a.hds", "image", "check", "a.hds")
}

// daemon starts one and waits until it answers.
func (d dir) daemon(options ...string) *exec.Cmd {
	d.t.Helper()
	self, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	// One that is killed leaves its tree mounted.
	d.t.Cleanup(func() { syscall.Unmount(d.file("run/sys"), syscall.MNT_DETACH) })
	cmd := exec.Command(self, append([]string{"daemon", "--launcher", "fork", "--serve-binary", d.serveBinary(), "--state-dir", d.file("state"), "--log-format", "json"}, options...)...)
	cmd.Env = append(os.Environ(), asHoldfast+"=1", "HOLDFAST_RUN_DIR="+d.file("run"))
	log, err := os.Create(d.file("log"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); d.killServers() })
	for deadline := time.Now().Add(time.Minute); d.holdfast("list").code != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("the manager does not answer: %s", d.read("log"))
		}
	}
	return cmd
}

// killServers kills the servers that a killed manager has left, and waits for their ends.
func (d dir) killServers() {
	d.t.Helper()
	entries, _ := os.ReadDir(d.file("run/devices"))
	for _, e := range entries {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			pid, held := state.Probe(d.file("run"), e.Name())
			if !held {
				break
			}
			if pid > 0 {
				syscall.Kill(pid, syscall.SIGKILL)
			}
			if time.Now().After(deadline) {
				d.t.Errorf("the server of %s, process %d, does not end", e.Name(), pid)
				break
			}
		}
	}
}

func TestDaemon(t *testing.T) {
	d := newDir(t)
	d.fails(5, "holdfast daemon", "list")
	d.fails(5, "", "create", "v", "--image", "a.hds")
	d.fails(5, "", "remove", "v")
	cmd := d.daemon()
	d.fails(4, "another holdfast daemon (process", "daemon", "--state-dir", d.file("state"))
	d.fails(4, "state directory", "daemon", "--state-dir", d.file("state"), "--run-dir", d.file("run2"))
	d.fails(1, `no device "v"`, "show", "v")
	d.fails(1, `no device "v"`, "remove", "v", "--force")
	snap := d.object("list")
	if snap["daemon"].(map[string]any)["pid"] != float64(cmd.Process.Pid) || len(snap["devices"].([]any)) != 0 {
		t.Errorf("%v", snap)
	}
	d.fails(1, "nothere", "create", "v", "--image", "nothere", "--run-dir", d.file("run"))
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, d.read("log"))
	}
	for line := range bytes.Lines(d.read("log")) {
		if !json.Valid(line) {
			t.Errorf("not JSON: %s", line)
		}
	}
	d.fails(5, "", "list")
	// After a kill it starts again over what is left.
	cmd = d.daemon()
	cmd.Process.Kill()
	cmd.Wait()
	d.daemon()
}
