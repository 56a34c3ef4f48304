package fusefs

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKilled kills a server, and mounts over what it left.
func TestKilled(t *testing.T) {
	needFUSE(t)
	dir := filepath.Join(t.TempDir(), "run", "sys") // neither is there
	for round := range 3 {
		child := exec.Command(os.Args[0], "-test.run=^$")
		child.Env = append(os.Environ(), serveDir+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		var successor int
		if _, err := fmt.Sscanf(line, "ready %d", &successor); err != nil {
			t.Fatalf("the child says %q", line)
		}
		t.Cleanup(func() { unix.Kill(successor, unix.SIGKILL) })
		if got, err := read(dir + "/value"); got != "child\n" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := Mount(dir, oneAttr("second"), Options{Name: "test"}); err == nil || !strings.Contains(err.Error(), "alive") {
			t.Errorf("a second server on a live one: %v", err)
		}
		child.Process.Kill()
		child.Wait()
		// Its own child is alive, and must not keep the connection so.
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != unix.ENOTCONN {
			t.Errorf("after the kill: %v, want ENOTCONN", err)
		}
		if round == 0 {
			continue // the next child replaces it
		}
		if _, err := Mount(dir, oneAttr("other"), Options{Name: "other"}); err == nil || !strings.Contains(err.Error(), "fuse.test") {
			t.Errorf("a dead mount of another name was replaced: %v", err)
		}
		s, err := Mount(dir, oneAttr("parent"), Options{Name: "test"})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := read(dir + "/value"); got != "parent\n" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		info, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(info), " "+dir+" "); n != 1 {
			t.Errorf("there are %d mounts", n)
		}
		for line := range strings.Lines(string(info)) {
			if strings.Contains(line, " "+dir+" ") {
				for _, want := range []string{"nosuid", "nodev", "noexec", " fuse.test test ", "allow_other", "default_permissions"} {
					if !strings.Contains(line, want) {
						t.Errorf("mounted without %q: %s", want, line)
					}
				}
			}
		}
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
		if err := s.Unmount(); err != nil {
			t.Errorf("the second Unmount: %v", err)
		}
		if names, err := os.ReadDir(dir); len(names) != 0 || err != nil {
			t.Errorf("after the unmount: %v, %v", names, err)
		}
	}
}

// TestRefused tries to mount where that must not be.
func TestRefused(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	full, file, foreign := filepath.Join(dir, "full"), filepath.Join(dir, "file"), filepath.Join(dir, "for eign")
	if err := errors.Join(os.MkdirAll(full+"/x", 0o755), os.WriteFile(file, nil, 0o600), os.Mkdir(foreign, 0o755),
		unix.Mount("none", foreign, "tmpfs", 0, ""), os.Symlink(foreign, filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(foreign, unix.MNT_DETACH) })
	for path, want := range map[string]string{
		full:                       "not empty",
		file:                       "not a directory",
		foreign:                    "type tmpfs",
		filepath.Join(dir, "link"): "not a directory",
		filepath.Join(file, "sub"): "not a directory",
	} {
		s, err := Mount(path, oneAttr("x"), Options{Name: "test"})
		if err == nil {
			s.Unmount()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// TestUnmountedByOthers has the mount taken away behind the server's back.
func TestUnmountedByOthers(t *testing.T) {
	dir, s := mountTree(t, oneAttr("1"))
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	if err := s.Unmount(); err != nil {
		t.Error(err)
	}
}
