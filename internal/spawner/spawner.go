package spawner

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// argument is the only one of the spawner's command line, for people who look at processes.
const argument = "__spawner"

const (
	socket = 3 // the spawner's descriptor
	// maxMessage is what a socket takes at once, with the default limit of its buffer
	// (net.core.wmem_default, 208 KiB), of which the kernel's own records are a part.
	maxMessage = 128 << 10
)

// limit is the time that the spawner has for an answer.
var limit = 20 * time.Second

// request is one message to the spawner; the command's files go with it. In gob, as JSON knows
// text only, and names of files may be any bytes.
type request struct {
	ID        int
	Path, Dir string
	Args, Env []string
	Group     bool
}

// answer is one message of the spawner: first one to each request, with a descriptor of
// the process, and then one at its end.
type answer struct {
	ID, PID int
	Ended   bool
	Err     string // of the start, or how it ended; "": well
}

// ErrGone: the spawner has died.
var ErrGone = errors.New("the process that starts programs for this one is gone; restart this one to have another")

// Spawner is the process that starts others.
type Spawner struct {
	conn *net.UnixConn
	died func(error)

	mu    sync.Mutex
	last  int
	calls map[int]*call
	gone  bool
	close bool
}

// call is a command on its way, or running.
type call struct {
	group   bool
	p       *Process   // once it runs
	started chan error // takes one
	late    bool       // nobody waits for its start any more
}

// Start starts the spawner. It must come before any file is opened that may hang, and
// after nothing that other programs must not get: all descriptors of this process, given ones
// too, are marked close-on-exec. died is called when the spawner dies before Close.
func Start(died func(error)) (_ *Spawner, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("the process that starts programs for this one can't be started: %w", err)
		}
	}()
	if err := unix.CloseRange(socket, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("close_range", err)
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "spawner"), os.NewFile(uintptr(ends[1]), "spawner")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	s := &Spawner{conn: conn.(*net.UnixConn), died: died, calls: map[int]*call{}}
	// Not by its name, which may be another program's by now.
	cmd := exec.Command("/proc/self/exe", argument)
	cmd.Args[0] = os.Args[0]
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	theirs.Close()
	s.conn.SetReadDeadline(time.Now().Add(limit))
	if a, _, err := s.read(make([]byte, maxMessage)); err != nil || a.ID != 0 {
		conn.Close()
		cmd.Process.Kill()
		return nil, fmt.Errorf("it doesn't answer (does main call spawner.Child?): %v", err)
	}
	s.conn.SetReadDeadline(time.Time{})
	go s.listen(cmd)
	return s, nil
}

// Close has the spawner end. Programs live on, but are heard of no more.
func (s *Spawner) Close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.close = true
	s.mu.Unlock()
	s.conn.Close()
}

// Start starts a program. On a nil Spawner, directly.
func (s *Spawner) Start(c Command) (*Process, error) {
	if c.Env == nil {
		c.Env = os.Environ()
	}
	if len(c.Files) > maxFiles {
		return nil, fmt.Errorf("%d files for a program, at most %d can be passed", len(c.Files), maxFiles)
	}
	if s == nil {
		cmd, pidfd, err := c.begin()
		if err != nil {
			return nil, err
		}
		p := &Process{PID: cmd.Process.Pid, group: c.Group, ended: make(chan struct{}), pidfd: pidfd}
		go func() { p.end(cmd.Wait()) }()
		return p, nil
	}
	cl := &call{group: c.Group, started: make(chan error, 1)}
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		return nil, ErrGone
	}
	s.last++
	id := s.last
	s.calls[id] = cl
	s.mu.Unlock()
	if err := s.send(id, &c); err != nil {
		s.mu.Lock()
		delete(s.calls, id)
		s.mu.Unlock()
		return nil, err
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case err := <-cl.started:
		return cl.p, err
	case <-t.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case err := <-cl.started:
		return cl.p, err
	default:
	}
	cl.late = true
	return nil, fmt.Errorf("the process that starts programs for this one does not answer within %v", limit)
}

func (s *Spawner) send(id int, c *Command) error {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(request{id, c.Path, c.Dir, c.Args, c.Env, c.Group}); err != nil {
		return err
	}
	if b.Len() > maxMessage {
		return fmt.Errorf("the program's arguments and environment are too large: %d bytes, at most %d", b.Len(), maxMessage)
	}
	var fds []int
	for _, f := range c.Files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	s.conn.SetWriteDeadline(time.Now().Add(limit))
	_, _, err := s.conn.WriteMsgUnix(b.Bytes(), rights, nil)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return ErrGone
	}
	return err
}

// read takes one answer, and the descriptor that comes with it, else -1.
func (s *Spawner) read(buf []byte) (a answer, pidfd int, err error) {
	fds, n, err := receive(s.conn, buf)
	if err == nil {
		err = gob.NewDecoder(bytes.NewReader(buf[:n])).Decode(&a)
	}
	pidfd = -1
	if len(fds) > 0 {
		pidfd = fds[0]
	}
	return a, pidfd, err
}

// listen takes answers to the spawner's end.
func (s *Spawner) listen(cmd *exec.Cmd) {
	var err error
	for buf := make([]byte, maxMessage); ; {
		var a answer
		var pidfd int
		if a, pidfd, err = s.read(buf); err != nil {
			break
		}
		s.handle(a, pidfd)
	}
	s.mu.Lock()
	s.gone = true
	calls, closed := s.calls, s.close
	s.calls = nil
	s.mu.Unlock()
	for _, cl := range calls {
		if cl.p == nil {
			cl.started <- ErrGone
		} else {
			go cl.p.watch(ErrGone)
		}
	}
	s.conn.Close() // it ends by that, if it is alive
	if ended := cmd.Wait(); ended != nil {
		err = ended
	}
	if !closed {
		s.died(fmt.Errorf("%w (%w)", ErrGone, err))
	}
}

func (s *Spawner) handle(a answer, pidfd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if a.Err != "" {
		err = errors.New(a.Err)
	}
	cl := s.calls[a.ID]
	switch {
	case cl == nil: // its request was cut off
		unix.Close(pidfd)
		return
	case !a.Ended && err == nil && pidfd < 0:
		unix.Kill(a.PID, unix.SIGKILL)
		err = errors.New("this process has too many files open")
	}
	if a.Ended {
		delete(s.calls, a.ID)
		cl.p.end(err)
		return
	}
	if err != nil {
		delete(s.calls, a.ID)
		cl.started <- err
		return
	}
	cl.p = &Process{PID: a.PID, group: cl.group, ended: make(chan struct{}), pidfd: pidfd}
	if cl.late {
		cl.p.Signal(unix.SIGKILL)
	}
	cl.started <- nil
}
