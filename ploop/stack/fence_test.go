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

func TestScopes(t *testing.T) {
	const line = "36 35 %s /x /mnt\\040y rw,noatime shared:1 master:2 - %s %s %s"
	for _, c := range []struct {
		dev, fsType, source, options string
		want                         image.Scope
	}{
		{"8:1", "ext4", "/dev/sda1", "rw", image.ScopeHost},
		{"259:3", "xfs", "/dev/nvme0n1p3", "rw,attr2", image.ScopeHost},
		{"8:1", "vfat", "/dev/sda1", "rw", image.ScopeHost},
		{"253:7", "ocfs2", "/dev/dm-7", "rw", image.ScopeHost},
		{"0:30", "btrfs", "/dev/sda1", "rw,subvolid=5", image.ScopeHost},
		{"0:30", "tmpfs", "tmpfs", "rw", image.ScopeHost},
		{"0:30", "zfs", "pool/data", "rw", image.ScopeHost},
		{"8:1", "fuseblk", "/dev/sda1", "rw,user_id=0", image.ScopeMount},
		{"0:50", "fuse", "x", "rw", image.ScopeMount},
		{"0:50", "fuse.sshfs", "host:", "rw", image.ScopeMount},
		{"0:50", "fuse.glusterfs", "host:vol", "rw", image.ScopeStorage},
		{"0:50", "virtiofs", "tag", "rw", image.ScopeMount},
		{"0:50", "9p", "tag", "rw,trans=virtio", image.ScopeMount},
		{"0:50", "cifs", "//h/s", "rw,vers=3.1.1", image.ScopeMount},
		{"0:50", "overlay", "overlay", "rw,lowerdir=/a", image.ScopeMount},
		{"0:50", "nfs", "h:/x", "rw,vers=3,local_lock=none,addr=1.2.3.4", image.ScopeStorage},
		{"0:50", "nfs4", "h:/x", "rw,vers=4.2,local_lock=none", image.ScopeStorage},
		{"0:50", "nfs", "h:/x", "rw,vers=3,nolock,local_lock=all", image.ScopeMount},
		{"0:50", "nfs", "h:/x", "rw,vers=3,local_lock=posix", image.ScopeMount},
		{"0:50", "nfs", "h:/x", "rw", image.ScopeMount},
		{"0:50", "ceph", "h:/", "rw", image.ScopeStorage},
		{"0:50", "lustre", "h:/l", "rw,flock", image.ScopeStorage},
		{"0:50", "lustre", "h:/l", "rw,localflock", image.ScopeMount},
		{"0:50", "whatever", "x", "rw", image.ScopeMount},
	} {
		e, ok := storage.FindMount("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"+fmt.Sprintf(line, c.dev, c.fsType, c.source, c.options)+"\n360 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "36")
		if got := storage.ScopeOf(e); !ok || e.FSType != c.fsType || e.Source != c.source || got != c.want {
			t.Errorf("%+v: %v, %+v, scope %s", c, ok, e, got)
		}
	}
}

// TestFenceOff goes through what a lock and two mounts say.
func TestFenceOff(t *testing.T) {
	fuse := image.Mount{Boot: "1", Super: 50, ID: 7, Type: "fuse.x", Scope: image.ScopeMount}
	with := func(m image.Mount, change func(*image.Mount)) image.Mount { change(&m); return m }
	nfs := image.Mount{Boot: "1", Super: 60, ID: 8, Type: "nfs4", Scope: image.ScopeStorage}
	smb := image.Mount{Boot: "1", Super: 70, ID: 9, Type: "cifs", Scope: image.ScopeMount}
	memory := image.Mount{Boot: "1", Super: 80, ID: 9, Type: "tmpfs", Scope: image.ScopeHost}
	disk := image.Mount{Boot: "1", Super: unix.Mkdev(4095, 1<<19), ID: 10, Type: "ext4", Scope: image.ScopeHost} // there is no such device
	node := image.Mount{Boot: "1", Super: 6, ID: 11, Type: "devtmpfs", Scope: image.ScopeHost, Node: 5, Disk: 9}
	for i, c := range []struct {
		before, now image.Mount
		locked, off bool // off: it isn't known that nothing is under way
	}{
		{fuse, fuse, true, false},
		{fuse, fuse, false, true},
		{with(fuse, func(m *image.Mount) { m.Boot = "0" }), with(fuse, func(m *image.Mount) { m.Super = 9 }), false, false},
		{nfs, with(nfs, func(m *image.Mount) { m.Super, m.ID = 61, 12 }), true, false},
		{nfs, with(nfs, func(m *image.Mount) { m.Super, m.ID = 61, 12 }), false, true},
		{with(nfs, func(m *image.Mount) { m.Scope = image.ScopeMount }), with(nfs, func(m *image.Mount) { m.Super = 61 }), true, true},
		{nfs, with(nfs, func(m *image.Mount) { m.Super, m.Scope = 61, image.ScopeMount }), true, true},
		{smb, with(smb, func(m *image.Mount) { m.Super = 71 }), true, true},
		{smb, with(smb, func(m *image.Mount) { m.ID = 0 }), true, false}, // the same superblock, or it is gone
		{memory, with(memory, func(m *image.Mount) { m.Super = 81 }), true, false},
		{disk, with(disk, func(m *image.Mount) { m.Super++ }), true, false}, // the old disk is gone
		{node, node, true, false},
		{node, node, false, true},
		{node, with(node, func(m *image.Mount) { m.Node = 6 }), true, true},
		{node, with(node, func(m *image.Mount) { m.Disk = 10 }), true, true},
	} {
		if why := storage.FenceOff(c.now, c.before, c.locked); (why != "") != c.off {
			t.Errorf("case %d: %q", i, why)
		}
	}
}

// TestFenceOfOldRecord: a record of an earlier version knows of a block device its node only.
func TestFenceOfOldRecord(t *testing.T) {
	now := image.Mount{Boot: "b", Super: 5, Node: 77, Disk: unix.Mkdev(8, 16), Scope: image.ScopeHost}
	old := image.Mount{Boot: "b", Super: 5, Node: 77}
	if why := storage.FenceOff(now, old, true); why != "" {
		t.Errorf("the same node: %s", why)
	}
	if storage.FenceOff(now, old, false) == "" {
		t.Error("without the lock it is taken")
	}
	old.Node = 78
	if storage.FenceOff(now, old, true) == "" {
		t.Error("another node is taken")
	}
}
