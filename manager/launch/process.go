package launch

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A process is one by its pidfd: its number may be somebody else's the moment after.
type process struct {
	pid   int
	fd    *os.File
	began time.Time // or when it was adopted
	dying bool      // seen so once
}

// An ending is how a process ended, if that is known.
type ending struct {
	status unix.WaitStatus
	known  bool
}

func (e ending) is(code int) bool {
	return e.known && e.status.Exited() && e.status.ExitStatus() == code
}

func (e ending) String() string {
	switch {
	case !e.known:
		return "in an unknown way"
	case e.status.Signaled():
		return "by signal " + unix.SignalName(e.status.Signal())
	}
	return fmt.Sprintf("with exit code %d", e.status.ExitStatus())
}

// reapWait is how long another parent may take to reap a process of ours whose exit code is
// to be had then.
const reapWait = time.Second

// spawn starts a program in a session of its own, with nothing of ours but the log.
func spawn(argv, env []string, log *os.File) (*process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	fd := -1
	pid, _, err := syscall.StartProcess(argv[0], argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   env,
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &fd},
	})
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", argv[0], err)
	}
	return newProcess(pid, fd)
}

// find is the process of a number, which must be one that was started for the name.
func find(name string, pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	} else if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	p, err := newProcess(pid, fd)
	if err != nil {
		return nil, err
	}
	// Whoever wrote the number down may be gone, and its number be given to another. One that
	// is dying has no arguments any more.
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	if err == nil && len(line) > 0 && args[len(args)-1] != name {
		p.fd.Close()
		return nil, fmt.Errorf("process %d is not that of %s: it runs %q", pid, name, args)
	}
	return p, nil
}

func newProcess(pid, fd int) (*process, error) {
	// The runtime's poller waits for it, and no thread.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("the pidfd of process %d: %w", pid, err)
	}
	return &process{pid: pid, fd: os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid)), began: time.Now()}, nil
}

// wait returns when the process has ended and is reaped, or with os.ErrClosed when fd is closed.
func (p *process) wait() (e ending, err error) {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return e, err
	}
	ended := false
	err = conn.Read(func(fd uintptr) bool {
		var gone, last bool
		e, gone, last = p.ended(int(fd))
		if gone && !last && !ended {
			ended = true
			p.fd.SetReadDeadline(time.Now().Add(reapWait))
		}
		return last
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return e, err
}

// ended says whether the process is gone, how it ended, and if that is the last word on it.
func (p *process) ended(fd int) (e ending, gone, last bool) {
	// By the descriptor first: another child of ours may have got the number.
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PIDFD, fd, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err == nil && info.Signo == int32(unix.SIGCHLD) {
		pid, err := unix.Wait4(p.pid, &e.status, unix.WNOHANG, nil)
		e.known = err == nil && pid == p.pid
		return e, true, true
	}
	if !errors.Is(err, unix.ECHILD) {
		return e, false, false
	}
	events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(events, 0); err != nil || n == 0 {
		return e, false, false
	}
	told := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(fd, &told); err != nil {
		return e, true, true // an older kernel
	}
	if told.Mask&unix.PIDFD_INFO_EXIT != 0 {
		return ending{unix.WaitStatus(told.Exit_code), true}, true, true
	}
	return e, true, events[0].Revents&unix.POLLHUP != 0
}

// signal sends one. It is nothing for a process that has ended.
func (p *process) signal(s unix.Signal) error {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), s, nil, 0) }); err != nil {
		return err
	}
	if sent != nil && !errors.Is(sent, unix.ESRCH) {
		return fmt.Errorf("sending %s to process %d: %w", unix.SignalName(s), p.pid, sent)
	}
	return nil
}
