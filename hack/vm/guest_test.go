package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGuest boots the kernel named by HOLDFAST_VM_SELFTEST some times (a minute
// or two when emulated) and sees that every verdict is told as documented.
func TestGuest(t *testing.T) {
	kernel := os.Getenv("HOLDFAST_VM_SELFTEST")
	if kernel == "" {
		t.Skip("HOLDFAST_VM_SELFTEST is not set to a kernel's name")
	}
	vm := filepath.Join(t.TempDir(), "vm")
	build := exec.Command("go", "build", "-o", vm, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	big := bytes.Repeat([]byte{0, '\n', '\r', 0xff, 'x', 4, 3, 26}, 10<<20/8)
	bigFile := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(bigFile, big, 0o644); err != nil {
		t.Fatal(err)
	}
	const show = `echo before; `
	for _, c := range []struct {
		name   string
		flags  []string
		script string
		code   int
		stdout string
		stderr string // to be contained
	}{
		{"environment", []string{"-env", "A=b c"}, `echo "$A"; id -u; test $HOLDFAST_VM = $(uname -r | cut -d. -f1,2); hostname >/dev/stderr`,
			0, "b c\n0\n", "holdfast-vm\n"},
		{"exit code", nil, `echo out; echo err >&2; exit 7`, 7, "out\n", "err\n"},
		{"signal", nil, `kill -9 $$`, 128 + 9, "", ""},
		{"no command", nil, `exec /no/such`, 127, "", "/no/such"},
		{"10 MiB, with somebody left behind", []string{"-files", bigFile}, `sleep 1000 & cat ` + bigFile, 0, string(big), ""},
		{"driver", nil, `modprobe ublk_drv && test -c /dev/ublk-control && echo ok`, 0, "ok\n", ""},
		{"disk and loop", []string{"-disk", "300M,none"}, `set -e; mkfs.ext4 -q /dev/vda; mount /dev/vda /mnt; truncate -s 200M /mnt/f; ` +
			`mkfs.ext4 -q /mnt/f; mkdir /tmp/m; mount -o loop /mnt/f /tmp/m; stat -f -c %T /tmp/m`, 0, "ext2/ext3\n", ""},
		{"time-out", []string{"-timeout", "4s"}, show + `sleep 1000`, exitTimeout, "before\n", "not done after 4s"},
		{"panic", nil, show + `sleep 1; echo c >/proc/sysrq-trigger; sleep 1000`, exitFault, "before\n", "sysrq triggered crash"},
		{"fault in the log", nil, show + `echo "BUG: made up" >/dev/kmsg`, exitOops, "before\n", "BUG: made up"},
		{"fault allowed", []string{"-allow-oops"}, show + `echo "BUG: made up" >/dev/kmsg; exit 3`, 3, "before\n", "BUG: made up"},
		{"systemd, and a reboot", []string{"-systemd", "-disk", "500M"}, `if [ -e /once ]; then systemctl is-system-running --wait; exit 5; fi; touch /once; systemctl reboot; sleep 1000`,
			5, "running\n", ""},
		{"no user space", []string{"-append", "rdinit=/nope"}, `true`, exitHarness, "", "in 3 boots"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := t.TempDir()
			args := append([]string{"-kernel", kernel, "-out", out}, c.flags...)
			cmd := exec.Command(vm, append(args, "--", "sh", "-c", "echo here >/results/file; "+c.script)...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			var exit *exec.ExitError
			if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != c.code {
				t.Errorf("exit code %d, want %d", got, c.code)
			}
			if stdout.String() != c.stdout {
				t.Errorf("standard output of %d bytes is not the %d expected: %.100q", stdout.Len(), len(c.stdout), stdout.String())
			}
			if !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("standard error lacks %q", c.stderr)
			}
			if file, err := os.ReadFile(filepath.Join(out, "file")); c.code != exitHarness && string(file) != "here\n" {
				t.Errorf("the file in /results has %q (%v)", file, err)
			}
			if t.Failed() {
				t.Logf("standard error:\n%s", stderr.String())
			}
		})
	}
}
