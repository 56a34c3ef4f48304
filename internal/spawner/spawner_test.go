package spawner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/hack/faultfs"
)

func TestMain(m *testing.M) {
	Child()
	faultfs.Child()
	switch os.Getenv(roleEnv) {
	case "mortal":
		mortal()
	case "hung":
		hung()
	}
	os.Exit(m.Run())
}

const roleEnv = "HOLDFAST_TEST_ROLE"

// both runs a test with a spawner and without.
func both(t *testing.T, test func(t *testing.T, s *Spawner)) {
	t.Run("spawner", func(t *testing.T) {
		s, err := Start(func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		test(t, s)
	})
	t.Run("direct", func(t *testing.T) { test(t, nil) })
}

// run runs a command to its end, and gives what it writes to descriptor n of its.
func run(t *testing.T, s *Spawner, c Command, n int) (string, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for range n - 1 {
		c.Files = append(c.Files, null)
	}
	c.Files = append(c.Files, w)
	p, err := s.Start(c)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(out), p.Wait()
}

func shell(script string, args ...string) Command {
	return Command{Path: "/bin/sh", Args: append([]string{"-c", script}, args...)}
}

func TestCommands(t *testing.T) {
	both(t, func(t *testing.T, s *Spawner) {
		want := func(out, status string, c Command, n int) {
			t.Helper()
			got, err := run(t, s, c, n)
			is := ""
			if err != nil {
				is = err.Error()
			}
			if got != out || is != status {
				t.Errorf("%q %q: %q, %q, want %q, %q", c.Path, c.Args, got, is, out, status)
			}
		}
		odd := "a\nb \xff'\"$x"
		want(odd, "", shell(`printf %s "$0"`, odd), 1)
		want("x", "exit status 3", shell("echo err; printf x >&2; exit 3"), 2)
		want("five", "", shell("printf five >&5"), 5)
		want("", "signal: killed", shell("kill -9 $$"), 1)
		want("", "exit status 127", Command{Path: "/not/there"}, 1)
		want("v /", "", Command{Path: "/bin/sh", Args: []string{"-c", `printf "%s %s" $V "$(pwd)"`}, Env: []string{"V=v"}, Dir: "/"}, 1)
		// Nothing but its own descriptors, and no signal is ignored that isn't here.
		want("0 1 2 3 ", "", shell("for f in /proc/self/fd/*; do printf '%s ' ${f##*/}; done"), 1) // 3: the directory
		want("TERM", "", shell("trap 'printf TERM; exit 0' TERM; kill $$"), 1)
		want("", "signal: user defined signal 1", shell("kill -USR1 $$"), 1)
		if _, err := s.Start(Command{Path: "/bin/true", Files: make([]*os.File, maxFiles+1)}); err == nil {
			t.Error("too many files were passed")
		}
		if s != nil {
			if _, err := s.Start(shell("true", strings.Repeat("x", maxMessage))); err == nil {
				t.Error("a message was sent that is too large")
			}
		}
	})
}

func TestSignals(t *testing.T) {
	both(t, func(t *testing.T, s *Spawner) {
		p, err := s.Start(shell("exec sleep 1000"))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := p.Wait(); err == nil || err.Error() != "signal: terminated" {
			t.Error(err)
		}
		if err := p.Signal(unix.SIGTERM); err != os.ErrProcessDone {
			t.Error(err)
		}
		// What a program leaves running goes with its group.
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		c := shell("sleep 1000 & exit 0")
		c.Group, c.Files = true, []*os.File{w}
		if p, err = s.Start(c); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
		if err := p.Signal(unix.SIGKILL); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadAll(r); err != nil { // to the end of what had it open
			t.Error(err)
		}
	})
}

func TestOutput(t *testing.T) {
	both(t, func(t *testing.T, s *Spawner) {
		// More than a pipe takes.
		if out, err := s.Output(t.Context(), "sh", "-c", "head -c 200000 /dev/zero"); err != nil || len(out) != 200000 {
			t.Errorf("%d bytes, %v", len(out), err)
		}
		if out, err := s.Output(t.Context(), "sh", "-c", "echo x; exit 1"); err == nil || string(out) != "x\n" {
			t.Errorf("%q, %v", out, err)
		}
		if _, err := s.Output(t.Context(), "no-such-program-here"); !errors.Is(err, exec.ErrNotFound) {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := s.Output(ctx, "sleep", "1000"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// children are the processes whose parent is pid.
func children(t *testing.T, pid int) (out []int) {
	t.Helper()
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		_, rest, _ := bytes.Cut(b, []byte(") "))
		var state string
		var parent, child int
		fmt.Sscan(string(rest), &state, &parent)
		if parent == pid {
			fmt.Sscan(string(b), &child)
			out = append(out, child)
		}
	}
	return out
}

func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(b, []byte(") Z "))
}

func waitGone(t *testing.T, pid int) {
	t.Helper()
	for begin := time.Now(); !gone(pid); time.Sleep(time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatalf("process %d does not end", pid)
		}
	}
}

// TestSpawnerDies: what runs is waited for, and nothing more is started.
func TestSpawnerDies(t *testing.T) {
	died := make(chan error, 1)
	before := children(t, os.Getpid())
	s, err := Start(func(err error) { died <- err })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, err := s.Start(shell("exec sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range children(t, os.Getpid()) {
		if pid != p.PID && !slices.Contains(before, pid) {
			for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR2} { // are not for it
				unix.Kill(pid, sig)
			}
			if _, err := run(t, s, shell("true"), 1); err != nil {
				t.Fatal(err)
			}
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	if err := <-died; !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "killed") {
		t.Error(err)
	}
	if _, err := s.Start(shell("true")); !errors.Is(err, ErrGone) {
		t.Errorf("a program was started after its death: %v", err)
	}
	select {
	case <-p.Ended():
		t.Error("a program has ended with it")
	default:
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := p.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Error(err)
	}
}

// mortal is a process with a spawner, for TestUserDies.
func mortal() {
	s, err := Start(func(error) {})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	p, err := s.Start(shell("exec sleep 1000"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.PID)
	select {}
}

// TestUserDies: the spawner ends with whom it is for, also after kill -9, and what it has
// started goes on. It doesn't have open what that process was given.
func TestUserDies(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	name := filepath.Join(t.TempDir(), "given")
	given, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer given.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stdout, cmd.ExtraFiles = append(os.Environ(), roleEnv+"=mortal"), w, []*os.File{given}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var program int
	if n, err := fmt.Fscan(r, &program); n != 1 {
		t.Fatal(err)
	}
	defer unix.Kill(program, unix.SIGKILL)
	var spawner int
	for _, pid := range children(t, cmd.Process.Pid) {
		if pid != program {
			spawner = pid
		}
	}
	if n := len(children(t, cmd.Process.Pid)); n != 2 || spawner == 0 {
		t.Fatalf("%d children", n)
	}
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", spawner))
	for _, link := range links {
		if to, _ := os.Readlink(link); to == name {
			t.Error("the spawner has a file open that the process was given")
		}
	}
	if len(links) == 0 {
		t.Error("the spawner's descriptors can't be read")
	}
	cmd.Process.Kill()
	cmd.Wait()
	waitGone(t, spawner)
	if gone(program) {
		t.Error("the program has ended with the spawner")
	}
}
