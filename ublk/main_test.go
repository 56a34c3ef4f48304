package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests that need the driver run in a VM of hack/vm, which sets HOLDFAST_VM to
// the kernel's series: there a missing driver fails them. Elsewhere they skip
// without one, and on a developer's machine that has one they run if root.

func control(t testing.TB) *Control {
	t.Helper()
	inVM := os.Getenv("HOLDFAST_VM") != ""
	if inVM {
		if out, err := exec.Command("modprobe", "ublk_drv").CombinedOutput(); err != nil {
			t.Fatalf("modprobe ublk_drv: %v\n%s", err, out)
		}
	}
	c, err := Open("")
	if err != nil {
		if !inVM && (errors.Is(err, ErrNoDriver) || errors.Is(err, ErrPermission)) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// need skips when the driver lacks f, and fails when this kernel ought to have it.
func need(t testing.TB, c *Control, f Feature) {
	t.Helper()
	err := c.Require(t.Context(), f)
	var missing *MissingFeatureError
	if errors.As(err, &missing) {
		if !releaseLess(release(t), missing.Missing.Since()) {
			t.Fatalf("%v; this is %s", err, release(t))
		}
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func release(t testing.TB) string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(u.Release[:])
}

// eachPath runs fn on both data paths.
func eachPath(t *testing.T, fn func(t *testing.T, c *Control, p DataPath)) {
	for _, p := range []DataPath{Copy, ZeroCopy} {
		t.Run(p.String(), func(t *testing.T) {
			c := control(t)
			if p == ZeroCopy {
				need(t, c, zeroCopyFeatures)
			} else if f, err := c.Features(t.Context()); testing.Short() && err == nil && f.Has(zeroCopyFeatures) {
				t.Skip("to save time: for kernels without zero copy to test")
			}
			fn(t, c, p)
		})
	}
}

// serve makes and starts a device that is stopped with the test.
func serve(t testing.TB, c *Control, cfg Config, h Handler, files ...*os.File) *Device {
	t.Helper()
	cfg.ID = -1
	cfg.Files = len(files)
	d, err := c.Create(t.Context(), cfg, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		if ids, err := c.List(); err != nil || contains(ids, d.ID()) {
			t.Errorf("device %d is still there: %v %v", d.ID(), ids, err)
		}
	})
	for i, f := range files {
		if err := d.SetFile(i, int(f.Fd())); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func contains(ids []int, id int) bool {
	for _, n := range ids {
		if n == id {
			return true
		}
	}
	return false
}

func backing(t testing.TB, size int64, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "disk"), os.O_RDWR|os.O_CREATE|flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// fileHandler serves a file in slot 0, everything it can on the ring, the rest in a
// goroutine.
type fileHandler struct {
	f *os.File
}

var _ Handler = (*fileHandler)(nil)

func (h *fileHandler) Begin(r *Request) {
	switch r.Op() {
	case OpRead:
		r.ReadFile(0, r.Offset())
	case OpWrite:
		var flags uint32
		if r.FUA() {
			flags = unix.RWF_DSYNC
		}
		r.WriteFile(0, r.Offset(), flags)
	case OpFlush:
		r.SyncFile(0)
	case OpDiscard, OpWriteZeroes:
		go func() {
			mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
			r.Complete(errnoOf(unix.Fallocate(int(h.f.Fd()), mode, r.Offset(), int64(r.Len()))))
		}()
	}
}

func (h *fileHandler) Transferred(r *Request, errno unix.Errno) { r.CompleteHere(errno) }

func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	}
	return unix.EIO
}

// ramHandler serves memory, on the queue's thread or, if slow, in goroutines.
type ramHandler struct {
	mem  []byte
	slow bool
}

var _ Handler = (*ramHandler)(nil)

func newRAM(t testing.TB, size int, slow bool) *ramHandler {
	t.Helper()
	mem, err := mapMemory(size, unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	return &ramHandler{mem: mem, slow: slow}
}

func (h *ramHandler) Begin(r *Request) {
	if h.slow {
		go func() { r.Complete(h.do(r)) }()
		return
	}
	r.CompleteHere(h.do(r))
}

func (h *ramHandler) do(r *Request) unix.Errno {
	switch r.Op() {
	case OpRead:
		return errnoOf(r.WritePayload(h.mem[r.Offset():][:r.Len()], 0))
	case OpWrite:
		return errnoOf(r.ReadPayload(h.mem[r.Offset():][:r.Len()], 0))
	case OpDiscard, OpWriteZeroes:
		clear(h.mem[r.Offset():][:r.Len()])
	}
	return 0
}

func (h *ramHandler) Transferred(*Request, unix.Errno) { panic("no transfer was begun") }

// aligned is memory that O_DIRECT takes.
func aligned(t testing.TB, n int) []byte {
	t.Helper()
	b, err := mapMemory(roundUp(n, os.Getpagesize()), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b[:n]
}

// openDirect opens the block device past the page cache.
func openDirect(t testing.TB, d *Device, flags int) *os.File {
	t.Helper()
	fd, err := unix.Open(d.Path(), flags|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s: %v", d.Path(), err)
	}
	f := os.NewFile(uintptr(fd), d.Path())
	t.Cleanup(func() { f.Close() })
	return f
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// fio runs one job on a device.
func fio(t testing.TB, d *Device, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip(err)
	}
	return run(t, "fio", append([]string{
		"--name=job", "--filename=" + d.Path(), "--direct=1", "--ioengine=io_uring", "--iodepth=32", "--randseed=4711",
	}, args...)...)
}

// verify is fio with checksums: random blocks, reads among the writes, trims; of so many MiB, or
// of a third to save time.
func verify(t testing.TB, d *Device, mib int) {
	t.Helper()
	if testing.Short() {
		mib /= 3
	}
	common := []string{fmt.Sprintf("--size=%dm", mib), "--bsrange=512-64k", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"}
	fio(t, d, append(common, "--rw=randrw", "--rwmixread=30", "--verify_backlog=64")...)
	if d.Config().DiscardGranularity > 0 {
		// Trimmed blocks are read back too and must be zeroes.
		fio(t, d, append(common, "--rw=randtrimwrite")...)
	}
}

func sysAttr(t testing.TB, d *Device, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/ublkb%d/%s", d.ID(), name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
