package device

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/hack/faultfs"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/ublk"
)

// procStatus reads a number from /proc/self/status.
func procStatus(t *testing.T, key string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for l := range bytes.Lines(b) {
		if f := bytes.Fields(l); len(f) > 1 && string(f[0]) == key+":" {
			n, err := strconv.Atoi(string(f[1]))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("/proc/self/status has no %s", key)
	return 0
}

// TestSlowThreads has 512 writes of each of 20 devices hang: the threads that they take are
// bounded, and reads and flushes of the same devices go on.
func TestSlowThreads(t *testing.T) {
	const devices, requests = 20, 512
	fd, release := newPipe(t)
	before := procStatus(t, "Threads")
	var all []*slowDevice
	var hung []*fakeRequest
	for range devices {
		s := newSlowDevice(t, requests+2, testImage(t, t.TempDir(), requests+2))
		all = append(all, s)
		hung = append(hung, s.hung(0, requests, fd)...)
	}
	workersOf := devices * mostWorkers[changing]
	eventually(t, "all workers hang", func() bool { return count(hung, (*fakeRequest).began) == workersOf })
	for _, s := range all {
		for _, r := range []*fakeRequest{{op: ublk.OpRead, off: requests * testCluster, n: 4096}, {op: ublk.OpFlush}} {
			if errno := <-s.request(r).end; errno != 0 {
				t.Errorf("%v: %v", r.op, errno)
			}
		}
	}
	// Those of the runtime and of what else was under way are some.
	if n := procStatus(t, "Threads") - before; n > workersOf+64 {
		t.Errorf("%d threads more, with %d workers", n, workersOf)
	}
	release()
	for _, r := range hung {
		if errno := <-r.end; errno != 0 {
			t.Fatal(errno)
		}
	}
	if n := workers.Load(); n != 0 {
		eventually(t, "no worker is left", func() bool { return workers.Load() == 0 })
	}
}

// TestSlowBudget: with as many workers in the process as may be, every device still has some.
func TestSlowBudget(t *testing.T) {
	workers.Add(mostThreads)
	defer workers.Add(-mostThreads)
	fd, release := newPipe(t)
	s := newSlowDevice(t, 32, testImage(t, t.TempDir(), 64))
	hung := s.hung(0, 16, fd)
	eventually(t, "some hang", func() bool { return count(hung, (*fakeRequest).began) == fewWorkers })
	time.Sleep(20 * time.Millisecond)
	if n := count(hung, (*fakeRequest).began); n != fewWorkers {
		t.Errorf("%d workers, want %d", n, fewWorkers)
	}
	release()
	for _, r := range hung {
		<-r.end
	}
}

// TestSlowReplaced has all workers hang when the stack is replaced: what waits for them
// begins anew at once, and the next stack's work has workers.
func TestSlowReplaced(t *testing.T) {
	fd, release := newPipe(t)
	s := newSlowDevice(t, 256, testImage(t, t.TempDir(), 256))
	n := mostWorkers[changing]
	hung := s.hung(0, n, fd)
	eventually(t, "all workers hang", func() bool { return count(hung, (*fakeRequest).began) == n })
	waiting := s.hung(n, 64, 0)
	if err := s.epochs.declareLate(); err != nil {
		t.Fatal(err)
	}
	for _, r := range waiting {
		<-r.anew
	}
	if r := s.request(&fakeRequest{op: ublk.OpFlush}); !r.back() {
		t.Error("between the stacks a request was served")
	}
	old := s.gen.Load()
	if err := s.epochs.adopt(newGeneration(old.stack, 1)); err != nil {
		t.Fatal(err)
	}
	for _, r := range s.hung(n, 64, 0) {
		if errno := <-r.end; errno != 0 {
			t.Error(errno)
		}
	}
	if n := count(hung, (*fakeRequest).ended); n != 0 {
		t.Errorf("%d of those that hang have ended", n)
	}
	release()
	for _, r := range hung {
		<-r.anew
	}
	if !s.replacer.drained() {
		t.Error("late calls remain")
	}
}

// TestSlowHeld closes the gate while all workers hang: what waits for them is held, and not
// kept from failing when standby times out.
func TestSlowHeld(t *testing.T) {
	fd, release := newPipe(t)
	s := newSlowDevice(t, 256, testImage(t, t.TempDir(), 256))
	s.key.Enable("test")
	if err := s.Attach("test"); err != nil {
		t.Fatal(err)
	}
	hung := s.hung(0, mostWorkers[changing], fd)
	eventually(t, "all workers hang", func() bool { return count(hung, (*fakeRequest).began) == len(hung) })
	waiting := s.hung(100, 64, 0)
	if err := s.SetStandby(true); err != nil {
		t.Fatal(err)
	}
	for _, r := range waiting {
		<-r.anew
	}
	if r := s.hung(200, 1, 0)[0]; !r.back() {
		t.Error("with the gate closed a request waits for a worker")
	}
	release()
	for _, r := range hung {
		<-r.end // what began before is finished
	}
}

// TestSlowBehind has many requests of one cluster wait for one that hangs: they take no
// worker from those of others.
func TestSlowBehind(t *testing.T) {
	fd, release := newPipe(t)
	s := newSlowDevice(t, 512, testImage(t, t.TempDir(), 512))
	first := s.hung(0, 1, fd)[0]
	var behind []*fakeRequest
	for range 2 * mostWorkers[changing] {
		behind = append(behind, s.hung(0, 1, 0)...)
	}
	// A range that begins before and ends after it waits as well, a READ doesn't.
	s.hung(300, 1, 0)
	wide := s.request(&fakeRequest{op: ublk.OpDiscard, off: 0, n: 4 * testCluster})
	if errno := <-s.request(&fakeRequest{op: ublk.OpRead, off: 0, n: 4096}).end; errno != 0 {
		t.Error(errno)
	}
	for _, r := range s.hung(1, 64, 0) {
		if errno := <-r.end; errno != 0 {
			t.Error(errno)
		}
	}
	if n := count(behind, (*fakeRequest).began) + len(wide.end); n != 0 {
		t.Errorf("%d requests didn't wait for another one of their cluster", n)
	}
	release()
	<-first.end
	for _, r := range append(behind, wide) {
		<-r.anew
	}
}

// TestSlowHungDiscard has a discard hang in the storage: reads of its clusters wait for it
// without a worker, and others are served.
func TestSlowHungDiscard(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts a file system")
	}
	w := newTwoMounts(t, faultfs.Options{})
	s := newSlowDevice(t, 256, testImageOn(t, w, 64))
	for i := range int64(8) {
		if errno := <-s.request(&fakeRequest{op: ublk.OpWrite, off: i * testCluster, n: 4096, fill: 1}).end; errno != 0 {
			t.Fatal(errno)
		}
	}
	t.Cleanup(w.a.Clear) // the end of a test that fails waits for nothing
	id := w.a.Add(faultfs.Rule{Op: faultfs.Fallocate, Path: "image", Hang: true})
	discard := s.request(&fakeRequest{op: ublk.OpDiscard, off: 0, n: 4 * testCluster})
	eventually(t, "the discard hangs", func() bool { return w.a.Rule(id).Hanging == 1 })
	var reads []*fakeRequest
	for range 2 * mostWorkers[reading] {
		reads = append(reads, s.request(&fakeRequest{op: ublk.OpRead, off: testCluster, n: 4096}))
	}
	if errno := <-s.request(&fakeRequest{op: ublk.OpRead, off: 5 * testCluster, n: 4096}).end; errno != 0 {
		t.Error(errno)
	}
	if n := count(reads, (*fakeRequest).ended); n != 0 {
		t.Errorf("%d reads of what is being discarded have ended", n)
	}
	w.a.Clear()
	if errno := <-discard.end; errno != 0 {
		t.Error(errno)
	}
	for _, r := range reads {
		<-r.anew
	}
}

// TestSlowMemory has 512 copy-ups of 4 KiB, in clusters of 1 MiB, hang in the middle: the
// memory that they take is bounded.
func TestSlowMemory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts a file system")
	}
	const requests, cluster = 512, 1 << 20
	w := newTwoMounts(t, faultfs.Options{})
	base := filepath.Join(w.backing, "base")
	if err := errors.Join(os.WriteFile(base, nil, 0o600), os.Truncate(base, requests*cluster)); err != nil {
		t.Fatal(err)
	}
	if err := ploop.Create(filepath.Join(w.backing, "top"), ploop.CreateOptions{Size: requests * cluster, ClusterSize: cluster}); err != nil {
		t.Fatal(err)
	}
	s := newSlowDevice(t, requests, ploop.ImageRef{Path: refs(w.a, "base")[0].Path, Raw: true}, refs(w.a, "top")[0])
	before := procStatus(t, "VmRSS")
	t.Cleanup(w.a.Clear) // the end of a test that fails waits for nothing
	id := w.a.Add(faultfs.Rule{Op: faultfs.Read, Path: "base", Hang: true})
	var rs []*fakeRequest
	for i := range int64(requests) {
		rs = append(rs, s.request(&fakeRequest{op: ublk.OpWrite, off: i*cluster + 300<<10, n: 4096, fill: 1}))
	}
	eventually(t, "all workers copy up", func() bool { return w.a.Rule(id).Hanging == mostWorkers[changing] })
	// A payload and a piece of the cluster each, and as much again for what the test needs.
	most := 2 * mostWorkers[changing] * (8 + 260)
	if n := procStatus(t, "VmRSS") - before; n > most {
		t.Errorf("%d kB more are resident, want at most %d", n, most)
	}
	w.a.Clear()
	for _, r := range rs {
		if errno := <-r.end; errno != 0 {
			t.Fatal(errno)
		}
	}
}

// TestThroughHangs has the flush hang that comes with the first lease of a device that is
// served through the page cache: further leases don't add to it.
func TestThroughHangs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts a file system")
	}
	w := newTwoMounts(t, faultfs.Options{})
	s := newSlowDeviceOf(t, 8, stack.Options{NoDirect: true}, testImageOn(t, w, 8))
	t.Cleanup(w.a.Clear) // the end of a test that fails waits for nothing
	if !s.gen.Load().stack.Status().Images[0].Cached {
		t.Fatal("the image isn't cached")
	}
	id := w.a.Add(faultfs.Rule{Op: faultfs.Fsync, Path: "image", Hang: true})
	if err := s.Attach("test"); err != nil {
		t.Fatal(err)
	}
	g := s.gen.Load()
	s.key.Enable("test")
	eventually(t, "the flush hangs", func() bool { return w.a.Rule(id).Hanging == 1 })
	before := runtime.NumGoroutine()
	for range 20 {
		s.key.Disable("test")
		eventually(t, "no write goes through", func() bool { return !s.through.Load() })
		s.key.Enable("test")
		eventually(t, "writes go through", func() bool { return s.through.Load() })
	}
	if n := runtime.NumGoroutine() - before; n > 5 {
		t.Errorf("%d goroutines more", n)
	}
	w.a.Clear()
	eventually(t, "what was written is durable", func() bool { return g.through.Load() == 0 })
}

// TestBuffers: a buffer is not much larger than what it is for, is aligned, and is used again.
func TestBuffers(t *testing.T) {
	for _, c := range []struct{ n, room int }{{512, 4 << 10}, {4 << 10, 4 << 10}, {4<<10 + 512, 64 << 10}, {64 << 10, 64 << 10}, {maxIO, maxIO}, {2 * maxIO, 2 * maxIO}} {
		b, done := buffer(c.n)
		if len(b) != c.n || cap(b) > c.room {
			t.Errorf("%d bytes are %d of %d", c.n, len(b), cap(b))
		}
		if _, err := unix.Pread(directFile(t), b, 0); err == unix.EINVAL {
			t.Errorf("%d bytes: not aligned", c.n)
		}
		done()
	}
}

// directFile is opened with O_DIRECT where the file system has it.
func directFile(t *testing.T) int {
	t.Helper()
	p := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(p, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip(fmt.Errorf("O_DIRECT: %w", err))
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}
