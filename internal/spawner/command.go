package spawner

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
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

// begin starts a command from this process: as its child, or with flag
// CLONE_PARENT as one of its parent's.
func (c *Command) begin(flag uintptr) (*os.Process, error) {
	// In the shell's own words, its name is the program and its arguments are the program's.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `exec "$0" "$@"`, c.Path}, c.Args...)...)
	cmd.Env, cmd.Dir = c.Env, c.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: c.Group, Cloneflags: flag}
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
	err := cmd.Start()
	return cmd.Process, err
}

// Process is a program that was started, a child of this process.
type Process struct {
	PID int

	process *os.Process
	group   bool
	ended   chan struct{}
	err     error // valid once it has ended
}

// adopt is for a child that nobody has waited for yet.
func adopt(process *os.Process, group bool) *Process {
	p := &Process{PID: process.Pid, process: process, group: group, ended: make(chan struct{})}
	go func() {
		state, err := process.Wait()
		if err == nil && !state.Success() {
			err = &exec.ExitError{ProcessState: state}
		}
		p.err = err
		close(p.ended)
	}()
	return p
}

// Ended is closed at its end.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait waits for its end. nil is success; an unsuccessful end is an *exec.ExitError.
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
	return p.process.Signal(sig)
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
			err = p.Wait()
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return out.Bytes(), err
}
