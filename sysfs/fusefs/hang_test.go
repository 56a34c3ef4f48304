package fusefs

import (
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/sysfs"
)

// TestHang has functions that don't return.
func TestHang(t *testing.T) {
	var gate atomic.Pointer[chan struct{}] // calls hang until it is closed
	shut := func() { c := make(chan struct{}); gate.Store(&c) }
	open := func() { close(*gate.Load()) }
	shut()
	var calls atomic.Int64
	hang := func() { c := gate.Load(); calls.Add(1); <-*c }
	dir, s := mountTree(t, &sysfs.Dir{Entries: []sysfs.Entry{
		&sysfs.Attr{Name: "stuck", Mode: 0o644,
			Show:  func() (string, error) { hang(); return "late", nil },
			Store: func(string) error { hang(); return nil }},
		&sysfs.Attr{Name: "well", Mode: 0o644, Show: func() (string, error) { return "yes", nil }, Store: func(string) error { return nil }},
	}})
	start := func(script string) *exec.Cmd {
		cmd := bash(dir, "exec "+script)
		before := calls.Load()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for calls.Load() == before {
			time.Sleep(time.Millisecond)
		}
		return cmd
	}
	var hung []*exec.Cmd
	hung = append(hung, start("sh -c 'echo x >stuck'"))
	for range maxLeft - 1 {
		hung = append(hung, start("cat stuck"))
	}
	if got := sh(t, dir, "cat well; echo x > well; ls; stat -c %s stuck"); got != "yes\nstuck\nwell\n4096\n" {
		t.Errorf("beside one that hangs: %q", got)
	}
	for _, cmd := range hung {
		cmd.Process.Signal(unix.SIGKILL)
	}
	for _, cmd := range hung {
		cmd.Wait() // comes back
	}
	for { // the server may be a moment behind
		if err := write(dir+"/well", "x", 0); err != nil {
			t.Fatal(err)
		}
		s.tree.mu.Lock()
		n := s.tree.left["stuck"]
		s.tree.mu.Unlock()
		if n == maxLeft {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := read(dir + "/stuck"); err != unix.EBUSY {
		t.Errorf("reading what %d hang in: %v, want EBUSY", maxLeft, err)
	}
	open()
	for {
		s.tree.mu.Lock()
		n := len(s.tree.left)
		s.tree.mu.Unlock()
		if n == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if got, err := read(dir + "/stuck"); got != "late\n" || err != nil {
		t.Errorf("after all: %q, %v", got, err)
	}
	// A signal that kills nobody doesn't break a call that takes a moment.
	shut()
	cmd := bash(dir, `trap : USR1; echo $$; read -r v < stuck; echo "$v"`)
	out, _ := cmd.StdoutPipe()
	before := calls.Load()
	cmd.Start()
	for calls.Load() == before {
		time.Sleep(time.Millisecond)
	}
	cmd.Process.Signal(unix.SIGUSR1)
	time.Sleep(100 * time.Millisecond)
	open()
	buf := make([]byte, 100)
	text := ""
	for n, err := out.Read(buf); err == nil; n, err = out.Read(buf) {
		text += string(buf[:n])
	}
	cmd.Wait()
	if !strings.HasSuffix(text, "\nlate\n") {
		t.Errorf("with a signal: %q", text)
	}
	// The unmount of a tree with a call that hangs, and a process in it.
	shut()
	defer open()
	sleeper := bash(dir, "exec sleep 1000")
	sleeper.Start()
	defer func() { sleeper.Process.Kill(); sleeper.Wait() }()
	cmd = start("cat stuck")
	if err := s.Unmount(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("cat read a value that there is not")
	}
	if top, err := mountedOn(dir); top != "" || err != nil {
		t.Errorf("still mounted: %q, %v", top, err)
	}
}

// TestPanic has a function that panics: an error, and the tree lives.
func TestPanic(t *testing.T) {
	needFUSE(t)
	dir := filepath.Join(t.TempDir(), "sys")
	var said atomic.Value
	s, err := Mount(dir, &sysfs.Dir{Entries: []sysfs.Entry{
		&sysfs.Attr{Name: "bad", Mode: 0o444, Show: func() (string, error) { panic("oh") }},
		&sysfs.Attr{Name: "good", Mode: 0o444, Show: func() (string, error) { return "1", nil }},
	}}, Options{Log: func(m string) { said.Store(m) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Unmount()
	if _, err := read(dir + "/bad"); err != unix.EIO {
		t.Errorf("%v, want EIO", err)
	}
	if m, _ := said.Load().(string); !strings.Contains(m, "bad: panic: oh") {
		t.Errorf("logged: %q", m)
	}
	if got, err := read(dir + "/good"); got != "1\n" {
		t.Errorf("%q, %v", got, err)
	}
}
