package ublk

import (
	"bytes"
	"crypto/rand"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTransfersMoveTheBytes(t *testing.T) {
	const block, blocks = 8192, 64
	data := make([]byte, block*blocks)
	rand.Read(data)
	in, out := backing(t, 0, 0), backing(t, 0, 0)
	if _, err := in.Write(data); err != nil {
		t.Fatal(err)
	}
	// Every tag reads a block of the first file, as a READ, keeps it in a WRITE's
	// buffer and writes it to the second.
	next := 0
	h := funcHandler{
		begin: func(r *Request) {
			if r.Op() == OpRead {
				r.ReadFile(0, r.Offset())
				return
			}
			r.WriteFileRange(1, r.Offset(), 0, block/2, 0)
		},
		transferred: func(r *Request, errno unix.Errno) {
			if errno != 0 {
				t.Errorf("%v: %v", r, errno)
			}
			if r.Op() == OpWrite {
				r.User++
				switch r.User {
				case 1:
					r.WriteFileRange(1, r.Offset()+block/2, block/2, block/2, unix.RWF_DSYNC)
					return
				case 2:
					r.SyncFile(1)
					return
				}
			}
			r.CompleteHere(errno)
		},
	}
	last := make(map[int]uint64)
	f := startFake(t, 8, block, []*os.File{in, out}, h, func(tag int, d *ioDesc) bool {
		if at, ok := last[tag]; ok { // now write what was read
			delete(last, tag)
			*d = ioDesc{opFlags: uint32(OpWrite), startSector: at, nrSectors: block / 512}
			return true
		}
		if next == blocks {
			return false
		}
		last[tag] = uint64(next * block / 512)
		next++
		*d = ioDesc{opFlags: uint32(OpRead), startSector: last[tag], nrSectors: block / 512}
		return true
	})
	f.wait()
	got, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("the copy differs")
	}
}

// A file that ends before a read does has lost something; one that ends later is read.
func TestReadPastTheEndFails(t *testing.T) {
	for _, flags := range []int{0, unix.O_DIRECT} {
		for _, size := range []int{0, 100, 511, 512, 4096, 5000, 8191, 8192, 9000} {
			f := backing(t, 0, 0)
			want := make([]byte, size)
			rand.Read(want)
			f.Write(want)
			if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, flags); err != nil {
				t.Skipf("no O_DIRECT here: %v", err)
			}
			var wantErrno unix.Errno
			if size < 8192 {
				wantErrno = unix.EIO
			}
			h := funcHandler{
				begin: func(r *Request) {
					for i := range r.Buffer() {
						r.Buffer()[i] = 0xee
					}
					r.ReadFile(0, 0)
				},
				transferred: func(r *Request, errno unix.Errno) {
					n := min(size, 8192)
					if errno != wantErrno || errno == 0 && !bytes.Equal(r.Buffer()[:n], want[:n]) {
						t.Errorf("a file of %d bytes, flags %#x: %v, want %v, or other bytes than expected", size, flags, errno, wantErrno)
					}
					r.CompleteHere(errno)
				},
			}
			startFake(t, 1, 8192, []*os.File{f}, h, times(1, ioDesc{opFlags: uint32(OpRead), nrSectors: 16})).wait()
		}
	}
}

func TestTransferErrors(t *testing.T) {
	ro, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for slot, want := range []unix.Errno{unix.EBADF, unix.ENOSPC, unix.EBADF} {
		var got unix.Errno
		h := funcHandler{
			begin:       func(r *Request) { r.WriteFile(slot, 0, 0) },
			transferred: func(r *Request, errno unix.Errno) { got = errno; r.CompleteHere(errno) },
		}
		startFake(t, 1, 4096, []*os.File{ro, full}, h, times(1, ioDesc{opFlags: uint32(OpWrite), nrSectors: 8})).wait()
		if got != want {
			t.Errorf("slot %d: %v, want %v", slot, got, want)
		}
	}
}

// A transfer that came short after its slot was given another file must not go on there:
// its place is one in the file that it began with.
func TestNoTransferGoesOnInAnotherFile(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	other := backing(t, 0, 0)
	if _, err := other.Write(make([]byte, 8192)); err != nil {
		t.Fatal(err)
	}
	var got unix.Errno
	begun := make(chan struct{})
	h := funcHandler{
		begin:       func(r *Request) { r.ReadFile(0, 0); close(begun) },
		transferred: func(r *Request, errno unix.Errno) { got = errno; r.CompleteHere(errno) },
	}
	f := startFake(t, 1, 8192, []*os.File{r}, h, times(1, ioDesc{opFlags: uint32(OpRead), nrSectors: 16}))
	f.dev.cfg.Files = 1
	<-begun
	if err := f.dev.OnQueues(func(*Queue) {}); err != nil { // under way by the next
		t.Fatal(err)
	}
	if err := f.dev.SetFile(0, int(other.Fd())); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	f.wait()
	if got != unix.ESTALE {
		t.Errorf("a transfer that came short, of a file that was replaced: %v, want ESTALE", got)
	}
}
