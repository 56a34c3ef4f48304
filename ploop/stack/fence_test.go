package stack

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/hack/faultfs"
	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
	"holdfast/ublk/uring"
)

const fencedEnv = "HOLDFAST_TEST_FENCED"

// fencedChild is a server whose last write the storage holds back. It says what it knows of
// its image, and waits to be killed.
func fencedChild() {
	path := os.Getenv(fencedEnv)
	if path == "" {
		return
	}
	check := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	runtime.LockOSThread()
	s, err := Open([]image.Ref{{Path: path}}, Options{})
	check(err)
	_, err = s.WriteAt(letters('A'), 0)
	check(err)
	check(s.Flush())
	e, err := s.Evidence(nil)
	check(err)
	check(json.NewEncoder(os.Stdout).Encode(e[0]))
	bufio.NewReader(os.Stdin).ReadString('\n')
	ring, err := uring.New(uring.Params{Entries: 8})
	check(err)
	at := s.NewReader().Locate(0, 4096, true)
	b := letters('B')
	ring.GetSQE().PrepWrite(s.Fds()[at.Level], unsafe.Pointer(&b[0]), 4096, at.Offset, 0)
	for {
		ring.SubmitAndWait(1, time.Second)
	}
}

func letters(c byte) []byte {
	b := storage.AlignedBuffer(4096)
	for i := range b {
		b[i] = c
	}
	return b
}

// heldWrite is an image of a server that was killed while a write of it was under way, which is
// held back still.
type heldWrite struct {
	t    *testing.T
	a    *faultfs.Storage
	rule int
	was  image.Evidence
	came bool
}

func newHeldWrite(t *testing.T, o faultfs.Options) *heldWrite {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a FUSE mount takes root")
	}
	o.AsyncIO = true
	seeConnections(t)
	w := &heldWrite{t: t}
	var err error
	if w.a, err = faultfs.Mount(t.TempDir(), t.TempDir(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.a.Close() })
	image := mustCreate(t, filepath.Join(w.a.Dir, "img"), ploop.CreateOptions{Size: 4 << 20, ClusterSize: 64 << 10})
	exe, _ := os.Executable()
	c := exec.Command(exe)
	c.Env = append(os.Environ(), fencedEnv+"="+image.Path)
	c.Stderr = os.Stderr
	in, _ := c.StdinPipe()
	out, _ := c.StdoutPipe()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	if err := json.NewDecoder(out).Decode(&w.was); err != nil {
		t.Fatal(err)
	}
	w.rule = w.a.Add(faultfs.Rule{Op: faultfs.Write, Path: "img", Hang: true, Times: 1})
	fmt.Fprintln(in, "go")
	w.until("the write hangs", func() bool { return w.a.Rule(w.rule).Hanging == 1 })
	return w
}

// seeConnections sees to it that FUSE connections can be seen.
func seeConnections(t *testing.T) {
	was, dir := storage.FuseConnections, t.TempDir()
	if err := unix.Mount("none", dir, "fusectl", 0, ""); err != nil {
		t.Fatalf("fusectl: %v", err)
	}
	storage.FuseConnections = dir
	t.Cleanup(func() {
		storage.FuseConnections = was
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func (w *heldWrite) until(what string, so func() bool) {
	w.t.Helper()
	for begin := time.Now(); !so(); time.Sleep(2 * time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			w.t.Fatalf("not so: %s", what)
		}
	}
}

// open is what the next server does.
func (w *heldWrite) open(dir string, fence bool, before ...image.Mount) (*Stack, error) {
	return Open([]image.Ref{{Path: filepath.Join(dir, "img")}}, Options{TakeOver: true, Continue: true, Locked: fence, Before: before, Log: w.t.Logf})
}

// keeps writes C, lets the late write land, if it hasn't, and gives what the disk then has.
func (w *heldWrite) keeps(s *Stack) byte {
	w.t.Helper()
	if _, err := s.WriteAt(letters('C'), 0); err != nil {
		w.t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		w.t.Fatal(err)
	}
	w.land()
	b := storage.AlignedBuffer(4096)
	if _, err := s.ReadAt(b, 0); err != nil {
		w.t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		w.t.Error(err)
	}
	return b[0]
}

// land lets the late write land.
func (w *heldWrite) land() {
	w.t.Helper()
	if w.came {
		return
	}
	w.came = true
	w.a.Remove(w.rule)
	back, _ := os.ReadFile(filepath.Join(w.a.Backing, "img"))
	w.until("it has landed", func() bool {
		back, _ = os.ReadFile(filepath.Join(w.a.Backing, "img"))
		return strings.Contains(string(back), string(letters('B')))
	})
}

// another mounts the storage once more.
func (w *heldWrite) another() *faultfs.Storage {
	w.t.Helper()
	b, err := faultfs.Mount(w.a.Backing, w.t.TempDir(), faultfs.Options{AsyncIO: true})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { b.Close() })
	return b
}

// TestFenceSameMount: the lock is the fence.
func TestFenceSameMount(t *testing.T) {
	w := newHeldWrite(t, faultfs.Options{})
	if _, err := w.open(w.a.Dir, true, w.was.Mount); !errors.Is(err, image.ErrLocked) {
		t.Fatalf("while a write is under way: %v", err)
	}
	w.land()
	var s *Stack
	w.until("it is had", func() (had bool) {
		var err error
		s, err = w.open(w.a.Dir, true, w.was.Mount)
		return err == nil
	})
	if c := w.keeps(s); c != 'C' {
		t.Errorf("the disk has %c, and C was flushed", c)
	}
}

// TestFenceAnotherMount: the lock is had at once, and proves nothing. The end of the old
// connection does.
func TestFenceAnotherMount(t *testing.T) {
	w := newHeldWrite(t, faultfs.Options{})
	b := w.another()
	refused := func(when string, before ...image.Mount) {
		t.Helper()
		if s, err := w.open(b.Dir, true, before...); err == nil {
			s.Close()
			t.Fatalf("%s: it is had", when)
		} else if !errors.Is(err, ErrLocalLock) {
			t.Fatalf("%s: %v", when, err)
		} else {
			t.Logf("%s: %v", when, err)
		}
	}
	refused("the old mount is there", w.was.Mount)
	refused("nothing is known of the old mount")
	if err := unix.Unmount(w.a.Dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	refused("it was detached", w.was.Mount)
	w.land()
	var s *Stack
	w.until("the connection has ended", func() bool {
		var err error
		s, err = w.open(b.Dir, true, w.was.Mount)
		return err == nil
	})
	if c := w.keeps(s); c != 'C' {
		t.Errorf("the disk has %c, and C was flushed", c)
	}
}

// TestFenceControl: without the fence the same loses what was flushed.
func TestFenceControl(t *testing.T) {
	w := newHeldWrite(t, faultfs.Options{})
	s, err := w.open(w.another().Dir, false)
	if err != nil {
		t.Fatal(err)
	}
	if c := w.keeps(s); c != 'B' {
		t.Fatalf("the disk has %c: the late write did not land, and the tests show nothing", c)
	}
}

// TestFenceAborted: the connection is gone, and its server has the write in hand. That is so as
// well where the next mount has been given the old one's number.
func TestFenceAborted(t *testing.T) {
	w := newHeldWrite(t, faultfs.Options{})
	abort := filepath.Join(storage.FuseConnections, strconv.FormatUint(storage.Connection(w.was.Mount), 10), "abort")
	if err := os.WriteFile(abort, []byte("1"), 0o200); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(w.a.Dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	w.until("the connection is gone", func() bool { _, err := os.Stat(filepath.Dir(abort)); return err != nil })
	occupy(t, storage.Connection(w.was.Mount))
	b := w.another()
	s, err := w.open(b.Dir, true, w.was.Mount)
	if err == nil {
		s.Close()
		t.Fatal("it is had, and a write may land yet")
	}
	if !errors.Is(err, ErrLocalLock) || !strings.Contains(err.Error(), "process") {
		t.Errorf("%v", err)
	}
	t.Log(err)
	w.land()
	w.a.Kill()
	if s, err = w.open(b.Dir, true, w.was.Mount); err != nil {
		t.Fatalf("its server is gone: %v", err)
	}
	if c := w.keeps(s); c != 'C' {
		t.Errorf("the disk has %c, and C was flushed", c)
	}
}

// occupy has another file system get the number of a device that was a FUSE mount's: the kernel
// gives it to the next mount, and a connection with it looks like the old one.
func occupy(t *testing.T, number uint64) {
	t.Helper()
	for range 16 {
		dir := t.TempDir()
		if err := unix.Mount("none", dir, "tmpfs", 0, "size=64K"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			t.Fatal(err)
		}
		if uint64(unix.Minor(st.Dev)) == number {
			return
		}
	}
	if _, err := os.Stat(filepath.Join(storage.FuseConnections, strconv.FormatUint(number, 10))); err == nil {
		t.Skip("another process has a FUSE mount with the number by now")
	}
}

// TestSucceedAnotherMount: while requests are under way in one mount, a lock had by another one
// doesn't let a replacement pass.
func TestSucceedAnotherMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a FUSE mount takes root")
	}
	w := &heldWrite{t: t}
	var err error
	if w.a, err = faultfs.Mount(t.TempDir(), t.TempDir(), faultfs.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.a.Close() })
	b := w.another()
	s := mustOpen(t, []image.Ref{mustCreate(t, filepath.Join(w.a.Dir, "img"), ploop.CreateOptions{Size: 4 << 20, ClusterSize: 64 << 10})}, Options{})
	if _, err := s.WriteAt(letters('A'), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	h := begin(t, s)
	c := one(filepath.Join(b.Dir, "img"))
	c.Drained = false
	if _, err := h.Prepare(c); !errors.Is(err, ErrInFlight) || !strings.Contains(err.Error(), "another mount") {
		t.Fatalf("not drained: %v", err)
	}
	c.Drained = true
	next, err := h.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	if len(next.Earlier()) != 0 {
		t.Errorf("drained, and something is under way in %v", next.Earlier())
	}
	commit(t, h)
	c = one(filepath.Join(w.another().Dir, "img"))
	c.Drained, c.Force = false, true
	h, last := mustSucceed(t, next, c)
	if len(last.Earlier()) != 1 {
		t.Errorf("forced, and forgotten where requests are: %v", last.Earlier())
	}
	commit(t, h)
	if err := last.Close(); err != nil {
		t.Error(err)
	}
}
