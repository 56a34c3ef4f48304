package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestModuleClosure(t *testing.T) {
	deps := parseModulesDep(`kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs/netfs.ko.xz
kernel/fs/netfs/netfs.ko.xz:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/char/hw_random/virtio-rng.ko:
kernel/a.ko: kernel/b.ko
kernel/b.ko: kernel/a.ko
`)
	builtin := parseModulesBuiltin("kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio_pci.ko\n")
	got, err := deps.closure(builtin, "virtio_pci", "9pnet_virtio", "9p", "virtio_rng")
	want := []string{
		"kernel/fs/netfs/netfs.ko.xz", "kernel/net/9p/9pnet.ko.xz", "kernel/net/9p/9pnet_virtio.ko.xz",
		"kernel/fs/9p/9p.ko.xz", "kernel/drivers/char/hw_random/virtio-rng.ko",
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	if got, err := deps.closure(builtin, "a"); err != nil || len(got) != 2 {
		t.Errorf("a cycle: got %v, %v", got, err)
	}
	if _, err := deps.closure(builtin, "nosuch"); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("a missing module: got %v", err)
	}
}

// header reads an entry's header; field widths are the format's.
func header(t *testing.T, b []byte) (mode, size, nameLen, major, minor int) {
	t.Helper()
	if len(b) < 110 || string(b[:6]) != "070701" {
		t.Fatalf("no newc header: %q", b[:min(len(b), 110)])
	}
	field := func(i int) (n int) {
		if _, err := fmt.Sscanf(string(b[6+8*i:14+8*i]), "%08X", &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	return field(1), field(6), field(11), field(9), field(10)
}

func TestCPIO(t *testing.T) {
	var b bytes.Buffer
	w := newCPIO(&b)
	w.file("/a/b/one", 0o755, []byte("x"))
	w.file("a/b/four", 0o644, []byte("1234"))
	w.file("a/empty", 0o644, nil)
	w.charDevice("dev/null", 1, 3)
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	type entry struct {
		name         string
		mode         int
		data         string
		major, minor int
	}
	var got []entry
	for rest := b.Bytes(); len(rest) > 0; {
		mode, size, nameLen, major, minor := header(t, rest)
		name := string(rest[110 : 110+nameLen-1])
		off := (110 + nameLen + 3) &^ 3
		got = append(got, entry{name, mode, string(rest[off : off+size]), major, minor})
		rest = rest[(off+size+3)&^3:]
	}
	want := []entry{
		{"a", 0o040755, "", 0, 0}, {"a/b", 0o040755, "", 0, 0},
		{"a/b/one", 0o100755, "x", 0, 0}, {"a/b/four", 0o100644, "1234", 0, 0}, {"a/empty", 0o100644, "", 0, 0},
		{"dev", 0o040755, "", 0, 0}, {"dev/null", 0o020600, "", 1, 3},
		{"TRAILER!!!", 0, "", 0, 0},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestCPIOForeign has somebody else's program read what we write.
func TestCPIOForeign(t *testing.T) {
	program := []string{"cpio", "-it", "--quiet"}
	if _, err := exec.LookPath("cpio"); err != nil {
		if _, err := exec.LookPath("busybox"); err != nil {
			if os.Getenv("HOLDFAST_TOOLS") == "required" {
				t.Fatal("neither cpio nor busybox here: run make setup")
			}
			t.Skip("neither cpio nor busybox here")
		}
		program = []string{"busybox", "cpio", "-it"}
	}
	path := filepath.Join(t.TempDir(), "archive")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := newCPIO(f)
	w.file("dir/file", 0o644, []byte("content"))
	w.copyFile("self", 0o755, path) // empty or not, its size must agree
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Stdin = f
	out, err := cmd.CombinedOutput()
	if err != nil || !reflect.DeepEqual(strings.Fields(string(out))[:3], []string{"dir", "dir/file", "self"}) {
		t.Errorf("%v: %v: %s", program, err, out)
	}
}
