package spawner

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a program to start.
type Command struct {
	Path string   // of the program, absolute
	Args []string // without its name
	Env  []string // nil: the environment of this process
	Dir  string   // "": the directory in which this process was started
	// Files are its descriptors from 1 on: standard output, standard error, 3, 4 and
	// so on, at most maxFiles. Those below 3 that are missing, and standard input, are /dev/null.
	// The caller closes its own after Start.
	Files []*os.File
	// Group gives it a process group of its own, which is what Signal signals.
	Group bool
}

const maxFiles = 8

// begin starts a command from this process, and gives a descriptor for it, too, which
// stands for this process and no later one of the same number.
func (c *Command) begin() (cmd *exec.Cmd, pidfd int, err error) {
	// In the shell's own words, its name is the program and its arguments are the program's.
	cmd = exec.Command("/bin/sh", append([]string{"-c", `exec "$0" "$@"`, c.Path}, c.Args...)...)
	cmd.Env, cmd.Dir = c.Env, c.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: c.Group}
	for i, f := range c.Files {
		switch i {
		case 0:
			cmd.Stdout = f
		case 1:
			cmd.Stderr = f
		default:
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, -1, err
	}
	if pidfd, err = unix.PidfdOpen(cmd.Process.Pid, 0); err != nil {
		cmd.Process.Kill()
		go cmd.Wait()
		return nil, -1, os.NewSyscallError("pidfd_open", err)
	}
	return cmd, pidfd, nil
}

// Process is a program that was started.
type Process struct {
	PID int

	group bool
	ended chan struct{}
	err   error // valid once it has ended

	mu    sync.Mutex
	pidfd int // -1: it has ended
}

// Ended is closed at its end.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait waits for its end. nil is success; other exits read as those of os/exec do.
func (p *Process) Wait() error {
	<-p.ended
	return p.err
}

// Signal sends a signal to it, or to its process group: to what is left of that, too,
// after its own end.
func (p *Process) Signal(sig unix.Signal) error {
	if p.group {
		return unix.Kill(-p.PID, sig)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return os.ErrProcessDone
	}
	return unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
}

func (p *Process) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	unix.Close(p.pidfd)
	p.pidfd, p.err = -1, err
	close(p.ended)
}

// watch waits for the end of a process that is not ours, and whose parent tells nothing.
func (p *Process) watch(why error) {
	for {
		// Only end closes it, and that is below.
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}, -1)
		if err != unix.EINTR {
			break
		}
	}
	p.end(errors.Join(errors.New("it has ended, but how is not known"), why))
}

// Output runs a program, found by PATH, and gives what it writes to its standard output.
// At the end of ctx it is killed, and not waited for.
func (s *Spawner) Output(ctx context.Context, name string, args ...string) ([]byte, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	p, err := s.Start(Command{Path: path, Args: args, Dir: "/", Files: []*os.File{w}, Group: true})
	w.Close()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() {
		p.Signal(unix.SIGKILL)
		r.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	var out bytes.Buffer
	_, err = io.Copy(&out, r)
	if err == nil {
		select {
		case <-p.Ended():
			err = p.err
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return out.Bytes(), err
}
