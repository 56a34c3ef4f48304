package ublk

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unserved is a Control whose commands nobody answers but the test.
func unserved(t *testing.T) *Control {
	t.Helper()
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	was := cancelGrace
	cancelGrace = time.Millisecond
	c := &Control{Timeout: time.Millisecond, wake: wake, ended: make(chan struct{})}
	t.Cleanup(func() {
		cancelGrace = was
		unix.Close(wake)
		for _, cl := range c.todo { // their memory is pinned until then
			if cl.target == nil && !cl.isDone() {
				c.finish(cl, 0)
			}
		}
	})
	return c
}

func (cl *call) isDone() bool {
	select {
	case <-cl.done:
		return true
	default:
		return false
	}
}

// sent are the commands that were given to the kernel.
func (c *Control) sent(op uint32) (calls []*call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cl := range c.todo {
		if cl.target == nil && cl.cmd.op == op {
			calls = append(calls, cl)
		}
	}
	return calls
}

// TestCommandsThatHang: a command that hangs and is tried again and again doesn't become
// many, and who tries gets the answer to the first when it comes.
func TestCommandsThatHang(t *testing.T) {
	c := unserved(t)
	for range 20 {
		if err := c.Stop(t.Context(), 5); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	}
	stops := c.sent(cmdStopDev)
	if len(stops) != 1 {
		t.Fatalf("20 STOP_DEVs of one device are %d in the kernel", len(stops))
	}
	if err := c.Stop(t.Context(), 6); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if n := len(c.sent(cmdStopDev)); n != 2 {
		t.Errorf("%d STOP_DEVs of two devices", n)
	}
	refused := 0
	for tries := 0; refused < 16 && tries < 1000; tries++ { // on a slow machine some don't begin in time
		if _, err := c.GetParams(t.Context(), 5); errors.Is(err, ErrCommandsHang) {
			refused++
		}
	}
	if n := len(c.sent(cmdGetParams)); n != mostLeft || refused != 16 {
		t.Errorf("%d GET_PARAMS hang, %d were refused; want %d that hang, and no more", n, refused, mostLeft)
	}
	if _, err := c.GetParams(t.Context(), 7); errors.Is(err, ErrCommandsHang) {
		t.Error("commands of another device are refused")
	}
	stop := command{op: cmdStopDev, dev: 5}
	if cl, anothers, err := c.begin(stop); cl != stops[0] || !anothers || err != nil {
		t.Errorf("one more STOP_DEV is %v (%v)", cl, err)
	}
	c.finish(stops[0], 0)
	if cl, anothers, err := c.begin(stop); cl == stops[0] || anothers || err != nil {
		t.Errorf("a STOP_DEV after the end of the first is %v (%v)", cl, err)
	}
}

// holder holds what it is told to.
type holder struct {
	mu   sync.Mutex
	hold bool
	held []*Request
}

var _ Handler = (*holder)(nil)

func (h *holder) Begin(r *Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hold {
		h.held = append(h.held, r)
		return
	}
	if r.Op() == OpRead {
		r.ZeroFill()
	}
	r.CompleteHere(0)
}

func (h *holder) Transferred(*Request, unix.Errno) {}

func (h *holder) set(hold bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hold = hold
	for _, r := range h.held {
		r.Complete(unix.EIO)
	}
	h.held = nil
}

func (h *holder) holds() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.held) > 0
}

// TestManyStopsThatWait has more devices be stopped whose requests hang than the kernel would
// have workers for one ring: others are asked, stopped and made as ever.
func TestManyStopsThatWait(t *testing.T) {
	c := control(t)
	make1 := func() (*Device, *holder) {
		h := &holder{}
		d, err := c.Create(t.Context(), Config{ID: -1, Size: 1 << 20, Depth: 2, Queues: 1}, h)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return d, h
	}
	healthy, _ := make1()
	var devices []*Device
	var holders []*holder
	for range 4*runtime.NumCPU() + 1 {
		d, h := make1()
		devices, holders = append(devices, d), append(holders, h)
	}
	var users, stops sync.WaitGroup
	defer users.Wait()
	stopped := make(chan error, len(devices))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for i, d := range devices {
		holders[i].set(true)
		users.Go(func() {
			fd, err := unix.Open(d.Path(), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
			if err != nil {
				return
			}
			defer unix.Close(fd)
			b, _ := mapMemory(4096, 0)
			unix.Pread(fd, b, 0)
			unix.Munmap(b)
		})
		eventually(t, "a read hangs", holders[i].holds)
		stops.Go(func() { stopped <- d.Stop(ctx) })
	}
	eventually(t, "all STOP_DEVs are in the kernel", func() bool { return workersOf(t) >= len(devices) })
	soon, cancelSoon := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancelSoon()
	if _, err := c.GetInfo(soon, healthy.ID()); err != nil {
		t.Error(err)
	}
	if err := healthy.Stop(soon); err != nil {
		t.Error(err)
	}
	if n := len(stopped); n != 0 {
		t.Errorf("%d devices whose requests hang were stopped: %v", n, <-stopped)
	}
	for _, h := range holders {
		h.set(false)
	}
	stops.Wait()
	for range devices {
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}
}

// workersOf counts io_uring's worker threads of this process.
func workersOf(t *testing.T) (n int) {
	names, err := filepath.Glob("/proc/self/task/*/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(b), "iou-wrk-") {
			n++
		}
	}
	return n
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
