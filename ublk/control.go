package ublk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/ublk/uring"
)

// DefaultControl is the driver's control device.
const DefaultControl = "/dev/ublk-control"

// DefaultTimeout bounds a control command whose context has no deadline.
const DefaultTimeout = 30 * time.Second

// cancelGrace is how long a command that outlived its deadline may take to
// answer its cancellation.
var cancelGrace = time.Second

// Control is the driver's control plane: one ring with a thread of its own, on
// which any number of commands run side by side. Its methods may be called from
// any goroutine.
//
// Every command has a deadline: the context's, or else Timeout from its start.
// A command that outlives it is cancelled, and the call returns a *CommandError
// that wraps the context's error. Some commands cannot be interrupted in the
// kernel (STOP_DEV waits for requests in flight): these go on behind the
// caller's back. Their memory is kept until they end, and Close does not wait
// for them. They keep no other command from being carried out; and however often they are
// tried again, they don't become many: who gives the same command again waits for the one
// that is in the kernel, and a device has at most mostLeft of those whose answer is of
// no use to others (ErrCommandsHang).
type Control struct {
	// Timeout is the deadline of commands whose context has none. Set it before
	// the first command.
	Timeout time.Duration

	fd       int
	wake     int // eventfd
	features atomic.Uint64

	mu     sync.Mutex
	todo   []*call
	left   []*call // given up by their callers, and in the kernel still
	closed bool
	ended  chan struct{}
}

// mostLeft is how many commands with memory of their own may hang for one device.
const mostLeft = 4

// maxWorkers is how many commands may be in the kernel at the same time: each has one of
// io_uring's worker threads there, which is made when wanted. The kernel's own limit is four a
// processor, so that a few devices that can't be stopped would keep all others from being
// stopped, made or asked.
const maxWorkers = 1 << 16

// command is one control command. mem, if any, is memory the driver reads or
// writes, of n bytes.
type command struct {
	op   uint32
	name string
	dev  int // -1: none, or any
	data uint64
	mem  unsafe.Pointer
	n    int
}

// call is a command on its way. It is reachable from the control thread until
// its completion has come, and so is the memory it names.
type call struct {
	cmd    command
	target *call // of a cancellation
	id     uint64
	pin    runtime.Pinner
	done   chan struct{} // closed when result is there
	result int32
}

// same says whether a command's answer is another one's as well.
func (c *command) same(other *command) bool {
	return c.mem == nil && other.mem == nil && c.op == other.op && c.dev == other.dev && c.data == other.data
}

// Open opens the control device at path, "" for DefaultControl, and starts the
// control thread. Errors: ErrNoDriver, ErrPermission, ErrIOUringDisabled,
// ErrTooOld, each with what to do about it.
func Open(path string) (*Control, error) {
	if path == "" {
		path = DefaultControl
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
			err = fmt.Errorf("%w (%w)", ErrNoDriver, err)
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			err = fmt.Errorf("%w (%w)", ErrPermission, err)
		}
		return nil, fmt.Errorf("ublk: open %s: %w", path, err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("ublk: eventfd: %w", err)
	}
	c := &Control{Timeout: DefaultTimeout, fd: fd, wake: wake, ended: make(chan struct{})}
	ready := make(chan error)
	go c.serve(ready)
	if err := <-ready; err != nil {
		unix.Close(fd)
		unix.Close(wake)
		return nil, fmt.Errorf("ublk: control ring: %w", err)
	}
	return c, nil
}

// Close refuses further commands. The control thread ends, and the descriptors
// are closed, when the last command has ended. Devices are not touched, but
// cannot be stopped any more: stop them first.
func (c *Control) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.notify()
	c.mu.Unlock()
	select {
	case <-c.ended:
	case <-time.After(cancelGrace):
	}
	return nil
}

// notify wakes the control thread. Called with mu held, so that wake is open.
func (c *Control) notify() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	for {
		_, err := unix.Write(c.wake, one[:])
		if err != unix.EINTR {
			return
		}
	}
}

func (c *Control) post(cl *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.todo = append(c.todo, cl)
	c.notify()
	return nil
}

// run sends a command and waits for its end or its deadline.
func (c *Control) run(ctx context.Context, cmd command) (int32, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}
	res, err := c.ask(ctx, cmd)
	if err == nil && res < 0 {
		err = explain(cmd, unix.Errno(-res))
	}
	if err != nil {
		return 0, &CommandError{Command: cmd.name, Device: cmd.dev, Err: err}
	}
	return res, nil
}

// ask gives the kernel's answer to a command.
func (c *Control) ask(ctx context.Context, cmd command) (int32, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	for {
		cl, anothers, err := c.begin(cmd)
		if err != nil {
			return 0, err
		}
		select {
		case <-cl.done:
			if anothers && cl.cancelled() { // not for us
				continue
			}
			return cl.result, nil
		case <-ctx.Done():
		}
		grace := time.NewTimer(cancelGrace)
		defer grace.Stop()
		if c.post(&call{target: cl}) == nil {
			select {
			case <-cl.done:
				if cl.cancelled() {
					return 0, fmt.Errorf("gave up: %w", ctx.Err())
				}
				return cl.result, nil // it ended of itself in the last moment
			case <-grace.C:
			}
		}
		c.leave(cl)
		return 0, fmt.Errorf("no answer from the kernel, where the command goes on: %w", ctx.Err())
	}
}

// cancelled says that a call that is done was given up in time.
func (cl *call) cancelled() bool {
	return cl.result == -int32(unix.EINTR) || cl.result == -int32(unix.ECANCELED)
}

// begin sends a command, unless another one that was given up can answer for it.
func (c *Control) begin(cmd command) (cl *call, anothers bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	hang := 0
	for _, l := range c.left {
		if l.cmd.same(&cmd) {
			return l, true, nil
		}
		if l.cmd.dev == cmd.dev && l.cmd.mem != nil {
			hang++
		}
	}
	if cmd.mem != nil && hang >= mostLeft {
		return nil, false, ErrCommandsHang
	}
	if c.closed {
		return nil, false, ErrClosed
	}
	cl = &call{cmd: cmd, done: make(chan struct{})}
	if cmd.mem != nil {
		cl.pin.Pin(cmd.mem) // until the completion has come
	}
	c.todo = append(c.todo, cl)
	c.notify()
	return cl, false, nil
}

// leave remembers a command that its caller has given up.
func (c *Control) leave(cl *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-cl.done:
	default:
		if !slices.Contains(c.left, cl) {
			c.left = append(c.left, cl)
		}
	}
}

// finish takes the kernel's answer.
func (c *Control) finish(cl *call, res int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl.pin.Unpin()
	cl.result = res
	close(cl.done)
	c.left = slices.DeleteFunc(c.left, func(l *call) bool { return l == cl })
}

const (
	wakeID   = 0
	cancelID = 1
	firstID  = 2
)

// serve is the control thread.
func (c *Control) serve(ready chan<- error) {
	// Never unlocked: the thread ends with the goroutine.
	runtime.LockOSThread()
	ring, err := uring.New(uring.Params{Entries: 64, CQEntries: 1024, SQE128: true})
	ready <- err
	if err != nil {
		return
	}
	defer close(c.ended)
	_ = ring.MaxWorkers(maxWorkers) // before Linux 5.15 the kernel's limit stands
	var (
		inflight = map[uint64]*call{}
		nextID   = uint64(firstID)
		armed    bool
		counter  = new(uint64)
		pin      runtime.Pinner
	)
	pin.Pin(counter)
	entry := func() *uring.SQE {
		for {
			if sqe := ring.GetSQE(); sqe != nil {
				return sqe
			}
			c.must(ring.Submit())
		}
	}
	for {
		if !armed {
			sqe := entry()
			sqe.PrepRead(c.wake, unsafe.Pointer(counter), 8, 0)
			sqe.UserData = wakeID
			armed = true
		}
		c.mu.Lock()
		todo, closed := c.todo, c.closed
		c.todo = nil
		c.mu.Unlock()
		for _, cl := range todo {
			sqe := entry()
			if cl.target != nil {
				sqe.PrepCancel(cl.target.id)
				sqe.UserData = cancelID
				continue
			}
			cl.id = nextID
			nextID++
			inflight[cl.id] = cl
			c.prepare(sqe, cl)
		}
		if closed && len(inflight) == 0 {
			break
		}
		c.must(ring.SubmitAndWait(1, -1))
		for cqe := ring.Peek(); cqe != nil; cqe = ring.Peek() {
			id, res := cqe.UserData, cqe.Res
			ring.Advance()
			switch id {
			case wakeID:
				armed = false
			case cancelID:
			default:
				cl := inflight[id]
				delete(inflight, id)
				c.finish(cl, res)
			}
		}
	}
	// The armed read still refers to counter until the ring is gone.
	ring.Close()
	unix.Close(c.fd)
	c.mu.Lock()
	unix.Close(c.wake)
	c.mu.Unlock()
	pin.Unpin()
}

func (c *Control) prepare(sqe *uring.SQE, cl *call) {
	cmd := &cl.cmd
	sqe.PrepURingCmd(c.fd, cmd.op)
	sqe.UserData = cl.id
	arg := (*ctrlCmd)(unsafe.Pointer(sqe.Cmd80()))
	*arg = ctrlCmd{
		devID:   uint32(int32(cmd.dev)),
		queueID: ^uint16(0),
		len:     uint16(cmd.n),
		addr:    uint64(uintptr(cmd.mem)),
		data:    cmd.data,
	}
}

// must ends the process when the control ring itself fails, which only a bug
// can bring about; a lack of memory or of room is retried.
func (c *Control) must(_ int, err error) {
	if err != nil && err != unix.EAGAIN && err != unix.EBUSY {
		panic(fmt.Sprintf("ublk: control ring: io_uring_enter: %v", err))
	}
}

func pid() uint64 { return uint64(os.Getpid()) }
