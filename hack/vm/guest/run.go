package guest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runner runs commands one at a time. As process 1 it is also the one to reap
// every orphan, so it waits by pid -1 and doesn't use os/exec.
type runner struct {
	ports
	mu  sync.Mutex
	pid int // the running command's, 0 if there is none
	// began is when the last command was started.
	began time.Time
	// over is set when time is up: no further command is started.
	over bool
	// service: process 1 is somebody else, and most processes are not ours.
	service bool
}

// Exit codes of commands that could not be started, as shells have them.
const (
	exitNotFound      = 127
	exitNotExecutable = 126
	exitSignalBase    = 128
)

// isOver tells whether time is up.
func (r *runner) isOver() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}

// run runs one command and returns its exit code; 128+n if signal n ended it.
func (r *runner) run(c *Command) int {
	if c.Package != "" {
		fmt.Fprintln(r.control, MsgRun, c.Package)
	}
	r.began = time.Now()
	return r.tell(c, r.exec(c))
}

// tell says what became of a test binary, as go test does, and returns the code to go by.
func (r *runner) tell(c *Command, code int) int {
	if c.Package == "" {
		return code
	}
	word := "ok  "
	if code != 0 {
		word = "FAIL"
		if code > exitSignalBase {
			fmt.Fprintf(r.stdout, "signal: %v\n", syscall.Signal(code-exitSignalBase))
		} else if code != 1 {
			fmt.Fprintf(r.stdout, "exit status %d\n", code)
		}
		code = 1
	}
	fmt.Fprintf(r.stdout, "%s\t%s\t%.3fs\n", word, c.Package, time.Since(r.began).Seconds())
	return code
}

func (r *runner) exec(c *Command) int {
	path, code, err := find(c)
	if err != nil {
		fmt.Fprintf(r.stderr, "holdfast-vm: %v\n", err)
		return code
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		fmt.Fprintf(r.stderr, "holdfast-vm: %v\n", err)
		return exitNotExecutable
	}
	defer null.Close()
	// Pipes, rather than the ports themselves, because a port can be opened
	// only once and programs do open /dev/stdout.
	out, err := newPump(r.stdout)
	if err != nil {
		fmt.Fprintf(r.stderr, "holdfast-vm: %v\n", err)
		return exitNotExecutable
	}
	errp, err := newPump(r.stderr)
	if err != nil {
		fmt.Fprintf(r.stderr, "holdfast-vm: %v\n", err)
		return exitNotExecutable
	}
	r.mu.Lock()
	pid, err := syscall.ForkExec(path, c.Args, &syscall.ProcAttr{
		Dir:   c.Dir,
		Env:   c.Env,
		Files: []uintptr{null.Fd(), out.in.Fd(), errp.in.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err == nil {
		r.pid = pid
	}
	r.mu.Unlock()
	out.in.Close()
	errp.in.Close()
	if err != nil {
		fmt.Fprintf(r.stderr, "holdfast-vm: run %s in %s: %v\n", path, c.Dir, err)
		return exitNotExecutable
	}
	ws := r.wait(pid)
	// What the command left running goes with it: otherwise the pipes would
	// never end, and the next command would not start from a clean state.
	if r.service {
		unix.Kill(-pid, unix.SIGKILL)
	} else {
		unix.Kill(-1, unix.SIGKILL)
	}
	out.finish()
	errp.finish()
	if ws.Signaled() {
		return exitSignalBase + int(ws.Signal())
	}
	return ws.ExitStatus()
}

func (r *runner) wait(pid int) syscall.WaitStatus {
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			fmt.Fprintf(r.stderr, "holdfast-vm: wait: %v\n", err)
			return syscall.WaitStatus(1 << 8)
		}
		if got == pid {
			r.mu.Lock()
			r.pid = 0
			r.mu.Unlock()
			return ws
		}
	}
}

// dump shows what hangs: SIGQUIT makes Go programs print their goroutines, and
// the kernel prints its blocked tasks to the console.
func (r *runner) dump() {
	r.mu.Lock()
	r.over = true
	if r.pid != 0 {
		unix.Kill(-r.pid, unix.SIGQUIT)
	}
	r.mu.Unlock()
	os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0)
}

// find resolves the command's name by the command's own PATH.
func find(c *Command) (path string, code int, err error) {
	name := c.Args[0]
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(c.Dir, name)
		}
		if _, err := os.Stat(name); err != nil {
			return "", exitNotFound, err
		}
		return name, 0, nil
	}
	search := Path
	for _, e := range c.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	for _, d := range strings.Split(search, ":") {
		p := filepath.Join(d, name)
		if st, err := os.Stat(p); err == nil && !st.IsDir() && st.Mode()&0o111 != 0 {
			return p, 0, nil
		}
	}
	return "", exitNotFound, fmt.Errorf("%s: not found in the guest (PATH is %s)", name, search)
}

// pump moves a command's output from a pipe to a port.
type pump struct {
	in    *os.File // the command's end
	moved atomic.Int64
	done  chan struct{}
}

func newPump(to *os.File) (*pump, error) {
	from, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &pump{in: in, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		defer from.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				if _, err := to.Write(buf[:n]); err != nil {
					// The host is gone; nobody is left to tell.
					_, _ = io.Copy(io.Discard, from)
					return
				}
				p.moved.Add(int64(n))
			}
			if err != nil {
				return
			}
		}
	}()
	return p, nil
}

// finish waits until the pipe is empty. Somebody who can't be killed (stuck in
// the kernel) may hold it open: without progress we wait 3 s and no longer.
func (p *pump) finish() {
	for {
		before := p.moved.Load()
		select {
		case <-p.done:
			return
		case <-time.After(3 * time.Second):
			if p.moved.Load() == before {
				return
			}
		}
	}
}
