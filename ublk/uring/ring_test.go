package uring

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newRing makes a ring for the test's goroutine, or skips where the machine forbids it.
func newRing(t testing.TB, p Params) *Ring {
	t.Helper()
	runtime.LockOSThread()
	r, err := New(p)
	if errors.Is(err, ErrDisabled) || errors.Is(err, unix.EPERM) || errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
	return r
}

// wait turns the loop until n completions are there.
func wait(t testing.TB, r *Ring, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); r.Ready() < n; {
		if _, err := r.SubmitAndWait(n, time.Second); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatalf("%d completions of %d after 10 s", r.Ready(), n)
		}
	}
}

// one submits the entry prepared and returns its result.
func one(t testing.TB, r *Ring) int32 {
	t.Helper()
	wait(t, r, 1)
	res := r.Peek().Res
	r.Advance()
	return res
}

// nop makes an entry that completes at once with 0: IORING_OP_NOP.
func nop(s *SQE) { s.Opcode = 0 }

// registerBuffers has the kernel pin memory as buffers 0, 1 …; outside of tests a driver does.
func registerBuffers(r *Ring, bufs ...[]byte) error {
	const registerBuffers = 0 // IORING_REGISTER_BUFFERS
	iov := make([]unix.Iovec, len(bufs))
	for i, b := range bufs {
		iov[i].Base = unsafe.SliceData(b)
		iov[i].SetLen(len(b))
	}
	_, err := r.register(registerBuffers, unsafe.Pointer(unsafe.SliceData(iov)), uintptr(len(iov)))
	return err
}

func memory(t testing.TB, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

func testFile(t testing.TB, size int) (*os.File, []byte) {
	t.Helper()
	data := make([]byte, size)
	rand.Read(data)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, data
}

func TestReadManyBatches(t *testing.T) {
	const block, blocks = 4096, 256
	r := newRing(t, Params{Entries: 32})
	f, data := testFile(t, block*blocks)
	buf := memory(t, block*blocks)
	seen := make([]bool, blocks)
	for next, done := 0, 0; done < blocks; {
		for next < blocks {
			s := r.GetSQE()
			if s == nil {
				break
			}
			s.PrepRead(int(f.Fd()), unsafe.Pointer(&buf[next*block]), block, int64(next*block))
			s.UserData = uint64(next)
			next++
		}
		if _, err := r.SubmitAndWait(1, -1); err != nil {
			t.Fatal(err)
		}
		n := r.Ready()
		for i := range n {
			c := r.At(i)
			if c.Res != block {
				t.Fatalf("read of block %d: result %d", c.UserData, c.Res)
			}
			if seen[c.UserData] {
				t.Fatalf("block %d completed twice", c.UserData)
			}
			seen[c.UserData] = true
		}
		r.Consume(n)
		done += n
	}
	if !bytes.Equal(buf, data) {
		t.Fatal("data read differ from the file's")
	}
}

func TestQueueFull(t *testing.T) {
	const entries = 4
	r := newRing(t, Params{Entries: entries})
	for i := range entries {
		s := r.GetSQE()
		if s == nil {
			t.Fatalf("entry %d of %d refused", i, entries)
		}
		nop(s)
		s.UserData = uint64(i)
	}
	if r.GetSQE() != nil {
		t.Fatal("more entries than the queue has")
	}
	if n := r.Pending(); n != entries {
		t.Fatalf("%d pending of %d", n, entries)
	}
	if n, err := r.Submit(); err != nil || n != entries {
		t.Fatalf("submitted %d: %v", n, err)
	}
	if r.GetSQE() == nil {
		t.Fatal("no entry after a submission")
	}
}

func TestFilesAndBuffers(t *testing.T) {
	r := newRing(t, Params{Entries: 8})
	f, data := testFile(t, 64<<10)
	buf := memory(t, 128<<10)
	if err := r.RegisterFilesSparse(4); err != nil {
		t.Fatal(err)
	}
	if err := registerBuffers(r, buf[:64<<10], buf[64<<10:]); err != nil {
		t.Fatal(err)
	}
	read := func(slot int) int32 {
		s := r.GetSQE()
		s.PrepReadFixed(slot, 1, uint64(uintptr(unsafe.Pointer(&buf[64<<10]))), 64<<10, 0)
		s.Flags = FixedFile
		return one(t, r)
	}
	if res := read(2); res != -int32(unix.EBADF) {
		t.Fatalf("read of an empty slot: %d, want EBADF", res)
	}
	if err := r.UpdateFile(2, int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	f.Close() // the table has a reference of its own
	if res := read(2); res != 64<<10 {
		t.Fatalf("read: %d", res)
	}
	if !bytes.Equal(buf[64<<10:], data) {
		t.Fatal("data read differ from the file's")
	}
	copy(buf, bytes.Repeat([]byte{0xa5}, 4096))
	s := r.GetSQE()
	s.PrepWriteFixed(2, 0, uint64(uintptr(unsafe.Pointer(&buf[0]))), 4096, 8192, unix.RWF_DSYNC)
	s.Flags = FixedFile
	if res := one(t, r); res != 4096 {
		t.Fatalf("write: %d", res)
	}
	s = r.GetSQE()
	s.PrepFsync(2, true)
	s.Flags = FixedFile
	if res := one(t, r); res != 0 {
		t.Fatalf("fsync: %d", res)
	}
	clear(buf)
	read(2)
	if !bytes.Equal(buf[64<<10+8192:64<<10+12288], bytes.Repeat([]byte{0xa5}, 4096)) {
		t.Fatal("the write is not to be read")
	}
	if err := r.UpdateFile(2, -1); err != nil {
		t.Fatal(err)
	}
	if res := read(2); res != -int32(unix.EBADF) {
		t.Fatalf("read of an emptied slot: %d, want EBADF", res)
	}
	if err := r.UpdateFile(4, 0); err == nil {
		t.Fatal("a slot beyond the table was taken")
	}
}

func TestEventfdWakesFromAnotherThread(t *testing.T) {
	r := newRing(t, Params{Entries: 8})
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(efd)
	value := memory(t, 8)
	for range 100 {
		s := r.GetSQE()
		s.PrepRead(efd, unsafe.Pointer(&value[0]), 8, 0)
		go unix.Write(efd, []byte{7, 0, 0, 0, 0, 0, 0, 7})
		if res := one(t, r); res != 8 || value[0] != 7 {
			t.Fatalf("result %d, value %v", res, value)
		}
	}
}

func TestCancel(t *testing.T) {
	r := newRing(t, Params{Entries: 8})
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(efd)
	value := memory(t, 8)
	s := r.GetSQE()
	s.PrepRead(efd, unsafe.Pointer(&value[0]), 8, 0)
	s.UserData = 42
	s = r.GetSQE()
	s.PrepCancel(42)
	s.UserData = 43
	wait(t, r, 2)
	for range 2 {
		switch c := r.Peek(); c.UserData {
		case 42:
			if c.Res != -int32(unix.ECANCELED) {
				t.Errorf("read: %d, want ECANCELED", c.Res)
			}
		case 43:
			if c.Res != 0 {
				t.Errorf("cancel: %d", c.Res)
			}
		}
		r.Advance()
	}
}

func TestWaitEndsByItsTimeout(t *testing.T) {
	r := newRing(t, Params{Entries: 8})
	if _, err := r.SubmitAndWait(1, 30*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if r.Peek() != nil {
		t.Fatal("a completion of nothing")
	}
}

func TestOtherThreadIsRefused(t *testing.T) {
	r := newRing(t, Params{Entries: 8})
	nop(r.GetSQE())
	got := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_, err := r.SubmitAndWait(0, -1)
		got <- err
	}()
	if err := <-got; !errors.Is(err, unix.EEXIST) {
		t.Fatalf("submission from another thread: %v, want EEXIST", err)
	}
	if res := one(t, r); res != 0 {
		t.Fatalf("nop: %d", res)
	}
}

func TestRegisteredRing(t *testing.T) {
	r := newRing(t, Params{Entries: 8})
	if err := r.RegisterRing(); err != nil {
		t.Skip(err)
	}
	if r.enterFlags != enterRegisteredRing {
		t.Fatal("the index is not used")
	}
	nop(r.GetSQE())
	if res := one(t, r); res != 0 {
		t.Fatalf("nop: %d", res)
	}
}

func TestSQE128(t *testing.T) {
	r := newRing(t, Params{Entries: 4, SQE128: true})
	for i := range 10 {
		s := r.GetSQE()
		if *s.Cmd80() != [80]byte{} {
			t.Fatalf("entry %d is not clean", i)
		}
		for j := range s.Cmd80() {
			s.Cmd80()[j] = 0xff
		}
		// NOP looks at none of it.
		s.UserData = uint64(i)
		wait(t, r, 1)
		if c := r.Peek(); c.UserData != uint64(i) {
			t.Fatalf("completion of %d, want %d", c.UserData, i)
		}
		r.Advance()
	}
}

func TestWrongSizes(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, n := range []int{-1, 0, 32769} {
		if r, err := New(Params{Entries: n}); err == nil {
			r.Close()
			t.Errorf("a ring of %d entries", n)
		}
	}
}

func TestNothingIsAllocated(t *testing.T) {
	r := newRing(t, Params{Entries: 64})
	if n := testing.AllocsPerRun(200, func() {
		for range 32 {
			nop(r.GetSQE())
		}
		for got := 0; got < 32; {
			if _, err := r.SubmitAndWait(1, time.Second); err != nil {
				t.Fatal(err)
			}
			n := r.Ready()
			r.Consume(n)
			got += n
		}
	}); n != 0 {
		t.Fatalf("%v allocations a batch", n)
	}
}

func BenchmarkNop(b *testing.B) {
	r := newRing(b, Params{Entries: 32})
	b.ReportAllocs()
	for b.Loop() {
		for range 32 {
			nop(r.GetSQE())
		}
		if _, err := r.SubmitAndWait(32, -1); err != nil {
			b.Fatal(err)
		}
		r.Consume(r.Ready())
	}
}
