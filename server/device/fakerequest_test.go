package device

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/standby"
	"holdfast/ublk"
)

// fakeRequest is a request without a driver, on the path without memory of its own.
type fakeRequest struct {
	op     ublk.Op
	off    int64
	n      int
	tag    int
	fill   byte         // a WRITE's bytes
	hang   int          // a WRITE's payload comes from this descriptor first; 0: at once
	tries  atomic.Int32 // a WRITE's
	end    chan unix.Errno
	anew   chan struct{}
	during func()
}

func (r *fakeRequest) Op() ublk.Op           { return r.op }
func (r *fakeRequest) Offset() int64         { return r.off }
func (r *fakeRequest) Len() int              { return r.n }
func (r *fakeRequest) FUA() bool             { return false }
func (r *fakeRequest) NoUnmap() bool         { return false }
func (r *fakeRequest) Tag() int              { return r.tag }
func (r *fakeRequest) Buffer() []byte        { return nil }
func (r *fakeRequest) Requeue()              { r.anew <- struct{}{} }
func (r *fakeRequest) Complete(e unix.Errno) { r.end <- e }

func (r *fakeRequest) WritePayload([]byte, int) error { return nil }

// ReadPayload hangs as a system call does to storage that doesn't answer: it has a thread.
func (r *fakeRequest) ReadPayload(p []byte, off int) error {
	r.tries.Add(1)
	if r.hang != 0 {
		for {
			if _, err := unix.Read(r.hang, make([]byte, 1)); err != unix.EINTR {
				break
			}
		}
	}
	if r.during != nil {
		r.during()
	}
	for i := range p {
		p[i] = r.fill
	}
	return nil
}

func (r *fakeRequest) ended() bool { return len(r.end) > 0 }
func (r *fakeRequest) began() bool { return r.tries.Load() > 0 }
func (r *fakeRequest) back() bool  { return len(r.anew) > 0 }

func count(rs []*fakeRequest, is func(*fakeRequest) bool) (n int) {
	for _, r := range rs {
		if is(r) {
			n++
		}
	}
	return n
}

// slowDevice is a device without a driver, for its slow way.
type slowDevice struct {
	*Device
	t    *testing.T
	key  *testKey
	tags int
}

func newSlowDevice(t *testing.T, depth int, refs ...ploop.ImageRef) *slowDevice {
	t.Helper()
	return newSlowDeviceOf(t, depth, stack.Options{}, refs...)
}

func newSlowDeviceOf(t *testing.T, depth int, o stack.Options, refs ...ploop.ImageRef) *slowDevice {
	t.Helper()
	if os.Getenv("HOLDFAST_VM") != "" && testing.Short() {
		t.Skip("wants no driver: make unit")
	}
	stack, err := stack.Open(refs, o)
	if err != nil {
		t.Fatal(err)
	}
	s := &slowDevice{t: t, key: newTestKey()}
	d := (&Device{dev: new(ublk.Device), closing: make(chan struct{}), changing: make(chan struct{}, 1), event: func(api.Event) {}, queues: make([]queue, 1)}).assemble()
	d.journal.pending = make(chan struct{}, 1)
	d.machine = standby.NewDevice(s.key.Switch, standby.Options{Changed: d.holding.changed})
	d.gate = d.machine.Gate()
	g := newGeneration(stack, 1)
	d.gen.Store(g)
	q := &d.queues[0]
	q.adopt(g, 0)
	q.born = time.Now()
	q.makeTags(depth)
	s.Device = d
	go d.holding.keep()
	t.Cleanup(func() {
		close(d.closing)
		d.parker.endParking()
		if err := d.gen.Load().stack.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// request gives another one to the slow way.
func (s *slowDevice) request(r *fakeRequest) *fakeRequest {
	r.tag = s.tags
	r.end, r.anew = make(chan unix.Errno, 1), make(chan struct{}, 1)
	s.tags++
	s.slow.submit(s.slow.job(r, &s.queues[0], classOf(r.op)))
	return r
}

// hung gives n WRITEs whose payload hangs, each of another cluster, from the first on.
func (s *slowDevice) hung(first, n, fd int) (rs []*fakeRequest) {
	for i := range n {
		rs = append(rs, s.request(&fakeRequest{op: ublk.OpWrite, off: int64(first+i) * testCluster, n: 4096, hang: fd}))
	}
	return rs
}

const testCluster = 64 << 10

// testImage is an image of so many clusters.
func testImage(t *testing.T, dir string, clusters int64) ploop.ImageRef {
	t.Helper()
	p := filepath.Join(dir, "image")
	if err := ploop.Create(p, ploop.CreateOptions{Size: clusters * testCluster, ClusterSize: testCluster}); err != nil {
		t.Fatal(err)
	}
	return ploop.ImageRef{Path: p}
}

// newPipe gives a pipe's reading end, and what ends all reads of it.
func newPipe(t *testing.T) (fd int, release func()) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	release = func() {
		if fds[1] >= 0 {
			unix.Close(fds[1])
			fds[1] = -1
		}
	}
	t.Cleanup(func() { release(); unix.Close(fds[0]) })
	return fds[0], release
}

// testImageOn is testImage by the first of two mounts.
func testImageOn(t *testing.T, w *twoMounts, clusters int64) ploop.ImageRef {
	t.Helper()
	testImage(t, w.backing, clusters)
	return refs(w.a, "image")[0]
}
