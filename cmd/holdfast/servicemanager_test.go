package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/sdtest"
)

// TestServiceManager: a manager that was started with a socket, a place for notifications and
// a watchdog uses all three, and leaves the socket to its owner.
func TestServiceManager(t *testing.T) {
	d, p := newDir(t), sdtest.Play(t)
	if err := os.Mkdir(d.file("run"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := d.file("run/control.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	start := func(runDir string) *exec.Cmd {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		// The number is only known to the process itself.
		cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, self, "daemon", "--launcher", "fork", "--serve-binary", d.serveBinary(), "--no-sysfs", "--state-dir", d.file("state"), "--run-dir", runDir)
		cmd.Env = append(os.Environ(), asHoldfast+"=again", "LISTEN_FDS=1", "LISTEN_FDNAMES=holdfast.socket", "NOTIFY_SOCKET="+p.Path, "WATCHDOG_USEC=200000", "WATCHDOG_PID=1")
		cmd.ExtraFiles = []*os.File{socket}
		log, err := os.Create(d.file("log"))
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd
	}
	for range 2 {
		cmd := start(d.file("run"))
		p.Received("READY=1")
		for range 3 {
			p.Received("WATCHDOG=1")
		}
		if pid := d.object("list")["daemon"].(map[string]any)["pid"]; pid != float64(cmd.Process.Pid) {
			t.Errorf("process %v answers, not %d", pid, cmd.Process.Pid)
		}
		p.Silent("WATCHDOG=1", func() {
			cmd.Process.Signal(syscall.SIGSTOP)
			d.until("the stop of all threads", func() bool {
				stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", cmd.Process.Pid))
				for _, s := range stats {
					if b, err := os.ReadFile(s); err == nil && !strings.Contains(string(b), ") T ") {
						return false
					}
				}
				return true
			})
			p.Drain(10 * time.Millisecond)
			time.Sleep(time.Second)
		})
		cmd.Process.Signal(syscall.SIGCONT)
		p.Received("WATCHDOG=1")
		// Anew, with the same socket.
		cmd.Process.Signal(syscall.SIGUSR2)
		p.Received("READY=1")
		p.Received("WATCHDOG=1")
		if pid := d.object("list")["daemon"].(map[string]any)["pid"]; pid != float64(cmd.Process.Pid) {
			t.Errorf("process %v answers after SIGUSR2, not %d", pid, cmd.Process.Pid)
		}
		if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("SIGUSR2 has the manager take another socket: %v", err)
		}
		cmd.Process.Signal(syscall.SIGTERM)
		p.Received("STOPPING=1")
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, d.read("log"))
		}
		if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("the manager's socket is gone: %v", err)
		}
	}
	// A unit that doesn't fit its own options is told so.
	cmd := start(d.file("elsewhere"))
	if err := cmd.Wait(); err == nil || !strings.Contains(string(d.read("log")), "ListenStream=") {
		t.Errorf("%v: %s", err, d.read("log"))
	}
}
