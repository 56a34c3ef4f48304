package launch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var ctx = context.Background()

// waits has a launcher's waits be counted and not be waited for.
func waits(f *Fork) func() []time.Duration {
	var mu sync.Mutex
	var list []time.Duration
	f.after = func(d time.Duration, do func()) *time.Timer {
		mu.Lock()
		defer mu.Unlock()
		list = append(list, d)
		return time.AfterFunc(0, do)
	}
	return func() []time.Duration { mu.Lock(); defer mu.Unlock(); return slices.Clone(list) }
}

func TestExitCodes(t *testing.T) {
	b := newBench(t)
	f := b.fork(testConfig(b.dir))
	waited := waits(f)
	b.ok(f.Start(ctx, "vm-1"))
	pid := b.next("vm-1")
	b.ok(f.Start(ctx, "vm-1")) // nothing
	if got := b.list(f); got != "vm-1" {
		t.Errorf("there are %s", got)
	}

	// It doesn't have what is ours.
	want := fmt.Sprintf("%d / %q %q", pid, []string{"serve", "it", "vm-1"}, []string{childEnv + "=" + b.dir})
	if got := b.send("vm-1", pid, "what"); got != want {
		t.Errorf("the process has\n%s\nand not\n%s", got, want)
	}

	b.send("vm-1", pid, "exit 75")
	pid = b.next("vm-1")
	if n := len(waited()); n != 0 {
		t.Errorf("%d waits after code 75", n)
	}
	b.send("vm-1", pid, "exit 1")
	pid = b.next("vm-1")
	unix.Kill(pid, unix.SIGKILL)
	pid = b.next("vm-1")
	unix.Kill(pid, unix.SIGTERM) // not by Stop
	pid = b.next("vm-1")
	if got := fmt.Sprint(waited()); got != "[20ms 40ms 80ms]" {
		t.Errorf("the waits after failures: %s", got)
	}
	if n, err := f.Restarts(ctx, "vm-1"); n != 4 || err != nil {
		t.Errorf("%d restarts, and not 4; %v", n, err)
	}
	b.send("vm-1", pid, "exit 0")
	b.over(f)
	if n := len(b.pids("vm-1")); n != 5 {
		t.Errorf("%d processes, and not 5", n)
	}

	// After that it is a new one.
	b.ok(f.Start(ctx, "vm-1"))
	pid = b.next("vm-1")
	b.send("vm-1", pid, "exit 2")
	b.next("vm-1")
	if got := fmt.Sprint(waited()[3:]); got != "[20ms]" {
		t.Errorf("the waits after another start: %s", got)
	}
	b.ok(f.Stop(ctx, "vm-1"))
	b.over(f)
	if len(f.keepers) != 0 {
		t.Errorf("%d names are kept for nothing", len(f.keepers))
	}
}

func TestStop(t *testing.T) {
	b := newBench(t)
	f := b.fork(testConfig(b.dir))
	b.ok(f.Stop(ctx, "none"))
	b.ok(f.Start(ctx, "a"))
	b.ok(f.Start(ctx, "b"))
	pid := b.next("a")
	b.send("a", pid, "ignore")
	b.ok(f.Stop(ctx, "a"))
	b.ok(f.Stop(ctx, "b"))
	b.until("b has ended", func() bool { return b.list(f) == "a" })
	// It is still there, and now is to go on.
	b.ok(f.Start(ctx, "a"))
	b.send("a", pid, "exit 0")
	pid = b.next("a")
	b.send("a", pid, "ignore")
	b.ok(f.Stop(ctx, "a"))
	b.send("a", pid, "exit 1") // doesn't matter
	b.over(f)
	if n := len(b.pids("a")); n != 2 {
		t.Errorf("%d processes, and not 2", n)
	}

	// Between two processes.
	b.ok(os.WriteFile(b.dir+"/a/exit", []byte("3"), 0o600))
	f.after = func(time.Duration, func()) *time.Timer { return time.NewTimer(time.Hour) }
	b.ok(f.Start(ctx, "a"))
	b.until("it has failed", func() bool {
		k, err := f.lock(ctx, "a")
		b.ok(err)
		defer k.unlock()
		return k.timer != nil
	})
	if got := b.list(f); got != "a" {
		t.Errorf("there are %q", got)
	}
	b.ok(f.Stop(ctx, "a"))
	b.over(f)
}

func TestDescriptors(t *testing.T) {
	b := newBench(t)
	// As a shell leaves them to what it starts, and no runtime knows of them.
	fd, err := unix.Open(b.dir, unix.O_RDONLY, 0)
	b.ok(err)
	defer unix.Close(fd)
	f := b.fork(testConfig(b.dir))
	b.ok(f.Start(ctx, "a"))
	pid := b.next("a")
	log := filepath.Join(b.dir, "a/log")
	got := strings.Fields(b.send("a", pid, "descriptors"))
	slices.Sort(got)
	if want := []string{"0:/dev/null", "1:" + log, "2:" + log}; !slices.Equal(got, want) {
		t.Errorf("the process has %q", got)
	}
	if link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err == nil && link == b.dir {
		t.Errorf("descriptor %d was inherited", fd)
	}
}

func TestLog(t *testing.T) {
	b := newBench(t)
	f := b.fork(testConfig(b.dir))
	waits(f)
	log := filepath.Join(b.dir, "a/log")
	for _, word := range []string{"one", "two"} {
		b.ok(f.Start(ctx, "a"))
		b.send("a", b.next("a"), "say "+word)
		b.ok(f.Stop(ctx, "a"))
		b.over(f)
	}
	if text, err := os.ReadFile(log); string(text) != "one\ntwo\n" {
		t.Errorf("the log has %q, %v", text, err)
	}
	if fi, err := os.Stat(log); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	// Twice, and never more than two files.
	for range 2 {
		b.ok(os.Truncate(log, logMax+1))
		b.ok(f.Start(ctx, "a"))
		pid := b.next("a")
		b.send("a", pid, "say three")
		b.send("a", pid, "exit 0")
		b.over(f)
	}
	if text, err := os.ReadFile(log); string(text) != "three\n" {
		t.Errorf("the log has %q, %v", text, err)
	}
	if fi, err := os.Stat(log + ".1"); err != nil || fi.Size() != logMax+1 {
		t.Errorf("log.1: %v, %v", fi, err)
	}
	b.ok(f.Forget(ctx, "a"))
	if left, _ := filepath.Glob(b.dir + "/a/log*"); len(left) != 0 {
		t.Errorf("Forget left %q", left)
	}
}

func TestBinary(t *testing.T) {
	b := newBench(t)
	f := b.fork(testConfig(b.dir))
	other := filepath.Join(b.dir, "other")
	b.ok(os.Symlink(f.config.Binary, other))
	if err := f.SetBinary(ctx, "a", "other"); err == nil {
		t.Error("a relative path is taken")
	}
	b.ok(f.SetBinary(ctx, "a", b.dir+"/missing"))
	if err := f.Start(ctx, "a"); !errors.Is(err, os.ErrNotExist) || b.list(f) != "" {
		t.Errorf("a program that isn't there: %v", err)
	}
	runs := func(pid int) string {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return strings.Split(string(line), "\x00")[0]
	}
	b.ok(f.SetBinary(ctx, "a", other))
	b.ok(f.Start(ctx, "a"))
	pid := b.next("a")
	if got := runs(pid); got != other {
		t.Errorf("%s runs", got)
	}
	// While it is missing it is tried again, with waits in between.
	waited := waits(f)
	b.ok(f.SetBinary(ctx, "a", b.dir+"/missing"))
	b.send("a", pid, "exit 75")
	b.until("it was tried five times", func() bool { return len(waited()) >= 5 })
	if got := fmt.Sprint(waited()[:5]); got != "[20ms 40ms 80ms 160ms 320ms]" {
		t.Errorf("waits %s", got)
	}
	b.ok(f.SetBinary(ctx, "a", ""))
	if got := runs(b.next("a")); got != f.config.Binary {
		t.Errorf("%s runs", got)
	}
}

// TestReadoption: the next launcher is in the same process, and so the parent of what it adopts.
func TestReadoption(t *testing.T) {
	b := newBench(t)
	f := b.fork(testConfig(b.dir))
	b.ok(f.Start(ctx, "a"))
	pid := b.next("a")
	b.ok(f.Close())
	if err := f.Start(ctx, "a"); !errors.Is(err, ErrClosed) {
		t.Errorf("a start after Close: %v", err)
	}
	if _, err := f.List(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("a list after Close: %v", err)
	}
	c := testConfig(b.dir)
	c.Wanted = func(string) bool { t.Error("Wanted is asked though there is an exit code"); return false }
	f = b.fork(c)
	if err := f.Adopt("other", pid); err == nil {
		t.Error("a process of another name was adopted")
	}
	if err := f.Adopt("a", 1<<22+1); !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("no process: %v", err)
	}
	b.ok(f.Adopt("a", pid))
	b.ok(f.Adopt("a", pid))
	b.ok(f.Start(ctx, "a")) // nothing
	b.send("a", pid, "exit 75")
	if err := f.Adopt("a", os.Getpid()); err == nil {
		t.Error("another process was adopted")
	}
	b.send("a", b.next("a"), "exit 0")
	b.over(f)
}

// TestAdoption: the launcher before was killed, and its processes are somebody else's children.
func TestAdoption(t *testing.T) {
	b := newBench(t)
	cmd := exec.Command(testConfig("").Binary, "over", "left", "failed", "unknown")
	cmd.Env = []string{reaperEnv + "=1", launcherEnv + "=" + b.dir}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	b.ok(err)
	b.ok(cmd.Start())
	lines := bufio.NewScanner(out)
	lines.Scan()
	launcher, err := strconv.Atoi(lines.Text())
	b.ok(err)
	if lines.Scan(); lines.Text() != "started" {
		t.Fatalf("the launcher says %q", lines.Text())
	}
	b.ok(unix.Kill(launcher, unix.SIGKILL))

	var mu sync.Mutex
	var asked []string
	c := testConfig(b.dir)
	c.Wanted = func(name string) bool {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, name)
		return name != "over" && name != "unknown"
	}
	f := b.fork(c)
	waited := waits(f)
	pids := map[string]int{}
	for _, name := range []string{"over", "left", "failed", "unknown"} {
		pids[name] = b.next(name)
		b.ok(f.Adopt(name, pids[name]))
	}
	b.send("over", pids["over"], "exit 0")
	b.until("it is over", func() bool { return !strings.Contains(b.list(f), "over") })
	b.send("left", pids["left"], "exit 75")
	b.next("left")
	b.send("failed", pids["failed"], "exit 3")
	b.next("failed")
	mu.Lock()
	if exitInfo(t) {
		if len(asked) != 0 || len(waited()) != 1 {
			t.Errorf("asked for %q, and waited %v, on a kernel that tells exit codes", asked, waited())
		}
	} else if want := []string{"over", "left", "failed"}; !slices.Equal(asked, want) {
		t.Errorf("asked for %q", asked)
	}
	mu.Unlock()

	// One that nobody reaps has no exit code.
	b.ok(cmd.Process.Signal(unix.SIGSTOP))
	b.until("none of its threads can wait for a child", func() bool {
		stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", cmd.Process.Pid))
		return len(stats) > 0 && !slices.ContainsFunc(stats, func(file string) bool {
			stat, err := os.ReadFile(file)
			return err == nil && !strings.Contains(string(stat), ") T ")
		})
	})
	b.send("unknown", pids["unknown"], "exit 3")
	b.until("it is over", func() bool { return b.list(f) == "failed left" })
	mu.Lock()
	if !slices.Contains(asked, "unknown") {
		t.Errorf("asked for %q", asked)
	}
	mu.Unlock()
	for _, name := range []string{"left", "failed"} {
		b.ok(f.Stop(ctx, name))
	}
	b.over(f)
	b.ok(cmd.Process.Kill())
	cmd.Wait()
}

// exitInfo says whether pidfds tell how others' children ended: Linux 6.15.
func exitInfo(t *testing.T) bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return major > 6 || major == 6 && minor >= 15
}

func TestBackoff(t *testing.T) {
	var b backoff
	var got []time.Duration
	for range 9 {
		got = append(got, b.failed(settled-1))
	}
	if want := "[20ms 40ms 80ms 160ms 320ms 640ms 1.28s 2s 2s]"; fmt.Sprint(got) != want {
		t.Errorf("%v", got)
	}
	if d := b.left(brief - 1); d != 0 {
		t.Errorf("waits %v for the successor", d)
	}
	if d := b.failed(settled); d != 20*time.Millisecond {
		t.Errorf("waits %v after one that ran long", d)
	}
	b = backoff{}
	got = nil
	for _, ran := range []time.Duration{brief, 0, 0, 0, brief, brief} {
		got = append(got, b.left(ran))
	}
	if want := "[0s 0s 20ms 40ms 0s 0s]"; fmt.Sprint(got) != want {
		t.Errorf("code 75: %v", got)
	}
}

func TestNames(t *testing.T) {
	b := newBench(t)
	f := b.fork(testConfig(b.dir))
	for _, name := range []string{"", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", strings.Repeat("a", 65)} {
		if err := f.Start(ctx, name); err == nil {
			t.Errorf("%q is a name", name)
		}
	}
	if _, err := NewFork(ForkConfig{Binary: "holdfast-serve", Dir: "/"}); err == nil {
		t.Error("a relative path is taken")
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if err := f.Start(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
