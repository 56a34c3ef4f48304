package launch

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/hack/faultfs"
)

// The test's own binary is also what is launched, and a launcher that a test kills.
const (
	childEnv    = "HOLDFAST_LAUNCH_CHILD"    // the directory
	launcherEnv = "HOLDFAST_LAUNCH_LAUNCHER" // likewise
	reaperEnv   = "HOLDFAST_LAUNCH_REAPER"
)

func TestMain(m *testing.M) {
	faultfs.Child()
	switch {
	case os.Getenv(reaperEnv) != "":
		reaper()
	case os.Getenv(launcherEnv) != "":
		launcher(os.Getenv(launcherEnv))
	case os.Getenv(childEnv) != "":
		child(os.Getenv(childEnv), os.Args[len(os.Args)-1])
	}
	os.Exit(m.Run())
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// child does what it is told at a socket of its own.
func child(dir, name string) {
	dir = filepath.Join(dir, name)
	if text, err := os.ReadFile(filepath.Join(dir, "exit")); err == nil {
		code, _ := strconv.Atoi(string(text))
		os.Exit(code)
	}
	path := filepath.Join(dir, fmt.Sprint(os.Getpid()))
	l, err := net.Listen("unix", path+".new")
	must(err)
	must(os.Rename(path+".new", path+".sock"))
	for {
		c, err := l.Accept()
		must(err)
		go func() {
			line, _ := bufio.NewReader(c).ReadString('\n')
			json.NewEncoder(c).Encode(order(dir, strings.Fields(line)))
			c.Close()
		}()
	}
}

// order is one thing that a child is told to do.
func order(dir string, words []string) string {
	switch words[0] {
	case "exit":
		code, _ := strconv.Atoi(words[1])
		os.Exit(code)
	case "ignore":
		signal.Ignore(unix.SIGTERM)
	case "say":
		fmt.Println(words[1])
	case "what":
		sid, _ := unix.Getsid(0)
		wd, _ := os.Getwd()
		return fmt.Sprintf("%d %s %q %q", sid, wd, os.Args[1:], os.Environ())
	case "descriptors":
		var list []string
		for fd, to := range descriptors() {
			list = append(list, fmt.Sprint(fd, ":", to))
		}
		return strings.Join(list, " ")
	case "lock": // as the next one waits for it
		fd, err := unix.Open(filepath.Join(dir, "lock"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		must(err)
		must(unix.Flock(fd, unix.LOCK_EX))
	case "read":
		b, err := os.ReadFile(words[1])
		return fmt.Sprint(string(b), err)
	}
	return "done"
}

// descriptors are those of this process but 0 to 2, and those that the runtime has.
func descriptors() map[string]string {
	found := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(to, "anon_inode:[event") || strings.HasPrefix(to, "socket:") || strings.HasPrefix(to, "/sys/fs/cgroup/") {
			continue
		}
		found[e.Name()] = to
	}
	return found
}

// launcher starts a process of each name that it is given, and waits to be killed.
func launcher(dir string) {
	f, err := NewFork(testConfig(dir))
	must(err)
	for _, name := range os.Args[1:] {
		must(f.Start(context.Background(), name))
	}
	fmt.Println("started")
	select {}
}

// reaper has a launcher as its child, and is the parent of what that leaves behind.
func reaper() {
	must(unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	os.Unsetenv(reaperEnv)
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	must(cmd.Start())
	fmt.Println(cmd.Process.Pid)
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil {
			os.Exit(0)
		}
	}
}

func testConfig(dir string) ForkConfig {
	exe, err := os.Executable()
	must(err)
	return ForkConfig{Binary: exe, Args: []string{"serve", "it"}, Env: []string{childEnv + "=" + dir}, Dir: dir}
}

// A bench is a directory with processes that are told what to do.
type bench struct {
	*testing.T
	dir  string
	seen map[int]bool // processes
}

func newBench(t *testing.T) *bench {
	dir, err := os.MkdirTemp("", "l") // short: there are sockets in it
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t, dir, map[int]bool{}}
	goroutines, fds := runtime.NumGoroutine(), len(descriptors())
	t.Cleanup(func() {
		b.until("goroutines and descriptors are as many as before", func() bool {
			return runtime.NumGoroutine() <= goroutines && len(descriptors()) <= fds
		})
		for {
			for pid := range b.pids("*") { // after a failure some may begin only now
				unix.Kill(pid, unix.SIGKILL)
			}
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil {
				break
			} else if pid == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		os.RemoveAll(dir)
	})
	return b
}

// fork is a launcher for it, which is closed before its processes end.
func (b *bench) fork(c ForkConfig) *Fork {
	b.Helper()
	f, err := NewFork(c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return f
}

// ok is for what must succeed.
func (b *bench) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// until waits for a condition that must come true.
func (b *bench) until(what string, ok func() bool) {
	b.Helper()
	for began := time.Now(); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			buf := make([]byte, 1<<16)
			b.Fatalf("waited in vain until %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}

// pids are the processes that have ever listened.
func (b *bench) pids(name string) map[int]bool {
	found := map[int]bool{}
	paths, _ := filepath.Glob(filepath.Join(b.dir, name, "*.sock"))
	for _, p := range paths {
		pid, _ := strconv.Atoi(strings.TrimSuffix(filepath.Base(p), ".sock"))
		found[pid] = true
	}
	return found
}

// next waits for a process that was not there yet.
func (b *bench) next(name string) (pid int) {
	b.Helper()
	b.until("there is another process of "+name, func() bool {
		for p := range b.pids(name) {
			if !b.seen[p] {
				b.seen[p], pid = true, p
				return true
			}
		}
		return false
	})
	return pid
}

// send has a process do something, and returns its answer: "" if it ended over it.
func (b *bench) send(name string, pid int, words string) (answer string) {
	b.Helper()
	c, err := net.Dial("unix", filepath.Join(b.dir, name, fmt.Sprint(pid, ".sock")))
	if err != nil {
		b.Error(err)
		return ""
	}
	defer c.Close()
	fmt.Fprintln(c, words)
	json.NewDecoder(c).Decode(&answer)
	return answer
}

// list is what the launcher says there is.
func (b *bench) list(l Launcher) string {
	b.Helper()
	names, err := l.List(context.Background())
	b.ok(err)
	return strings.Join(names, " ")
}

// over waits until a launcher has no process of any name.
func (b *bench) over(l Launcher) {
	b.Helper()
	b.until("there is no process", func() bool { return b.list(l) == "" })
}
