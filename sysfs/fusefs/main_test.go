package fusefs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/sysfs"
)

const serveDir = "FUSEFS_TEST_SERVE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveDir); dir != "" {
		serveUntilKilled(dir)
	}
	if os.Getenv("HOLDFAST_VM") != "" {
		exec.Command("modprobe", "fuse").Run()
	}
	os.Exit(m.Run())
}

// serveUntilKilled is the child whose death a test wants. It has a child of
// its own, which outlives it.
func serveUntilKilled(dir string) {
	if _, err := Mount(dir, oneAttr("child"), Options{Name: "test"}); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	successor := exec.Command("sleep", "1000")
	if err := successor.Start(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready", successor.Process.Pid)
	select {}
}

func oneAttr(value string) *sysfs.Dir {
	return &sysfs.Dir{Entries: []sysfs.Entry{&sysfs.Attr{Name: "value", Mode: 0o444,
		Show: func() (string, error) { return value, nil }}}}
}

// mountTree mounts a tree on a new directory.
func mountTree(t *testing.T, root *sysfs.Dir) (string, *Server) {
	t.Helper()
	needFUSE(t)
	dir := filepath.Join(t.TempDir(), "sys")
	s, err := Mount(dir, root, Options{Name: "test", Log: func(m string) { t.Log(m) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return dir, s
}

func needFUSE(t *testing.T) {
	t.Helper()
	if os.Getenv("HOLDFAST_VM") != "" {
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := t.TempDir()
	fd, err := mount(dir, "probe")
	if err != nil {
		t.Skip(err)
	}
	unix.Unmount(dir, unix.MNT_DETACH)
	unix.Close(fd)
}

// bash is a script that will run in a directory. It goes there by itself: with
// Cmd.Dir the fork would, and the whole process wait for it.
func bash(dir, script string) *exec.Cmd {
	cmd := exec.Command("bash", "-c", `cd "$TREE" || exit; `+script)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TREE="+dir)
	return cmd
}

// sh runs a script in a directory and gives what it printed, errors too.
func sh(t *testing.T, dir, script string) string {
	t.Helper()
	out, err := bash(dir, script).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s%v\n", out, err)
	}
	return string(out)
}

// read is one open, some reads, one close, by system calls.
func read(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return readOn(fd)
}

func readOn(fd int) (string, error) {
	var all strings.Builder
	for buf := make([]byte, 100); ; {
		n, err := unix.Read(fd, buf)
		if n <= 0 || err != nil {
			return all.String(), err
		}
		all.Write(buf[:n])
	}
}

func write(path, text string, flags int) error {
	fd, err := unix.Open(path, unix.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := unix.Write(fd, []byte(text))
	if err == nil && n != len(text) {
		return fmt.Errorf("%d of %d bytes were written", n, len(text))
	}
	return err
}

// switches is a tree with a switch, and with what was stored in it.
func switches() (root *sysfs.Dir, stored func() []string) {
	var mu sync.Mutex
	var all []string
	value := "off"
	return &sysfs.Dir{Entries: []sysfs.Entry{
			&sysfs.Dir{Name: "queue", Entries: []sysfs.Entry{
				&sysfs.Attr{Name: "standby", Mode: 0o644,
					Show: func() (string, error) { mu.Lock(); defer mu.Unlock(); return value, nil },
					Store: func(v string) error {
						mu.Lock()
						defer mu.Unlock()
						all = append(all, v)
						if v != "on" && v != "off" {
							return errors.New("neither on nor off")
						}
						value = v
						return nil
					}}}},
			&sysfs.Attr{Name: "size", Mode: 0o444, Show: func() (string, error) { return "2048", nil }},
			&sysfs.Attr{Name: "trigger", Mode: 0o200, Store: func(string) error { return fmt.Errorf("changing: %w", unix.EBUSY) }},
			&sysfs.Attr{Name: "gone", Mode: 0o444, Show: func() (string, error) { return "", fmt.Errorf("looking: %w", unix.ENODEV) }},
			&sysfs.Attr{Name: "long", Mode: 0o444, Show: func() (string, error) { return strings.Repeat("0123456789", 10000), nil }},
			&sysfs.Link{Name: "link", Target: "queue/standby"},
		}}, func() []string {
			mu.Lock()
			defer mu.Unlock()
			return all
		}
}
