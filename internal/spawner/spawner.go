package spawner

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"math"
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

// answer is one message of the spawner, one to each request.
type answer struct {
	ID, PID int
	Err     string // "": it runs
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

// call is a command on its way.
type call struct {
	group bool
	done  chan result // takes one
	late  bool        // nobody waits for it any more
}

type result struct {
	p   *Process
	err error
}

// Start starts the spawner. It must come before any file is opened that may hang. All
// descriptors that this process was given are marked close-on-exec. died is called when
// the spawner dies before Close.
func Start(died func(error)) (_ *Spawner, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("the process that starts programs for this one can't be started: %w", err)
		}
	}()
	if err := unix.CloseRange(socket, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
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
	if a, err := s.read(make([]byte, maxMessage)); err != nil || a.ID != 0 {
		conn.Close()
		cmd.Process.Kill()
		return nil, fmt.Errorf("it doesn't answer (does main call spawner.Child?): %v", err)
	}
	s.conn.SetReadDeadline(time.Time{})
	go s.listen(cmd)
	return s, nil
}

// Close has the spawner end. Programs live on.
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
		process, err := c.begin(0)
		if err != nil {
			return nil, err
		}
		return adopt(process, c.Group), nil
	}
	cl := &call{group: c.Group, done: make(chan result, 1)}
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
	case r := <-cl.done:
		return r.p, r.err
	case <-t.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case r := <-cl.done:
		return r.p, r.err
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

func (s *Spawner) read(buf []byte) (a answer, err error) {
	_, n, err := receive(s.conn, buf)
	if err == nil {
		err = gob.NewDecoder(bytes.NewReader(buf[:n])).Decode(&a)
	}
	return a, err
}

// listen takes answers to the spawner's end.
func (s *Spawner) listen(cmd *exec.Cmd) {
	var err error
	for buf := make([]byte, maxMessage); ; {
		var a answer
		if a, err = s.read(buf); err != nil {
			break
		}
		s.handle(a)
	}
	s.mu.Lock()
	s.gone = true
	calls, closed := s.calls, s.close
	s.calls = nil
	s.mu.Unlock()
	for _, cl := range calls {
		cl.done <- result{err: ErrGone}
	}
	s.conn.Close() // it ends by that, if it is alive
	if ended := cmd.Wait(); ended != nil {
		err = ended
	}
	if !closed {
		s.died(fmt.Errorf("%w (%w)", ErrGone, err))
	}
}

func (s *Spawner) handle(a answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cl := s.calls[a.ID]
	delete(s.calls, a.ID)
	if cl == nil { // its request was cut off
		cl = &call{done: make(chan result, 1), late: true}
	}
	if a.Err != "" {
		cl.done <- result{err: errors.New(a.Err)}
		return
	}
	process, err := os.FindProcess(a.PID) // a child of ours, so no other one of that number
	if err != nil {
		cl.done <- result{err: err}
		return
	}
	p := adopt(process, cl.group)
	if cl.late {
		p.Signal(unix.SIGKILL)
	}
	cl.done <- result{p: p}
}
