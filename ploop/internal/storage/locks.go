package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"golang.org/x/sys/unix"

	"holdfast/internal/failpoint"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/bundle"
	"holdfast/ploop/internal/plain"
)

// Images are locked by open-file-description locks, which go with the last
// reference to the open file, that of a killed process' transfers included.
// So the lock of a writer, over the whole file, is a fence as well: who gets
// it knows that nothing of an earlier writer can land any more.
//
// Others that lock images keep to bytes of their own. QEMU (block/file-posix.c)
// takes read locks only and asks, by F_OFD_GETLK for a write lock, whether
// anybody has the byte that contradicts. Byte 100+i says "I do i", byte 200+i "I
// don't share it", where i is 0 to read consistently, 1 to write, 2 to write
// what was there, 3 to resize, and in QEMU up to 5.2 also 4. The ploop tool of
// OpenVZ 9 (lib/lock.c) does the same with the bytes 200 to 204 as one, on the
// base of a bundle, for as long as it works on the bundle. libvirt's virtlockd
// locks byte 0.
//
//	who                        has                  asks for
//	writer of ours             all, for writing     -
//	reader of ours             0–100 201 203        101 103 200; any write lock
//	the same, of a golden base 0–100                101 103 200; any write lock
//	reader before this table   all                  -
//	QEMU, raw, reading         100                  200
//	QEMU, raw, writing         100 101              200 201
//	QEMU, a format, reading    100 201 203          101 103 200
//	QEMU, a format, writing    100 101 103 201 203  101 103 200 201 203
//	OpenVZ's tool              200–204              200–204
//	virtlockd                  0                    -
//
// A golden base is an image that a bundle in its own folder names, read by a stack whose
// top lies elsewhere. OpenVZ's tool works on such a bundle, and on others over the same
// base, beside us. The price is that a QEMU that comes later isn't kept from writing to it:
// both ask for the same bytes. Everything else that we read others may not begin to
// write. The tool is let in where it is first, since what it has locked is a bundle and not
// this image, but for readers that guard: those that need an image to stay as it is for a
// while (check, convert, map), and a stack for the images of its top's own bundle.
const (
	qemuUses     = 100
	qemuDenies   = 200
	qemuRead     = 0
	qemuWrite    = 1
	qemuResize   = 3
	openvzLength = 5
)

// lock takes the lock that the file was opened for. It says whether the file system
// has locks at all.
func (f *OSFile) lock() (bool, error) {
	if failpoint.Off("no-fence") {
		return false, nil
	}
	if f.Write {
		ok, err := f.setLock(unix.F_WRLCK, 0, 0)
		if ok {
			err = f.unclaimed()
		}
		return ok, err
	}
	if ok, err := f.setLock(unix.F_RDLCK, 0, qemuUses+1); !ok {
		return false, err
	}
	if f.Guard || f.deny {
		return true, f.DenyWriters()
	}
	return true, f.askOthers()
}

// DenyWriters keeps others from beginning to write.
func (f *OSFile) DenyWriters() error {
	f.deny = true
	for _, i := range []int64{qemuWrite, qemuResize} {
		if ok, err := f.setLock(unix.F_RDLCK, qemuDenies+i, 1); !ok {
			return err
		}
	}
	return f.askOthers() // after it was taken: of two that do so, one sees the other
}

// askOthers fails if anybody says that he writes to the file, or that nobody may read it.
func (f *OSFile) askOthers() error {
	for _, q := range []struct {
		kind       int16
		start, len int64
		does       string
	}{
		{unix.F_RDLCK, 0, 0, "has it for itself"},
		{unix.F_WRLCK, qemuUses + qemuWrite, 1, "writes to it"},
		{unix.F_WRLCK, qemuUses + qemuResize, 1, "resizes it"},
		{unix.F_WRLCK, qemuDenies + qemuRead, 1, "changes it"},
	} {
		lk := unix.Flock_t{Type: q.kind, Start: q.start, Len: q.len}
		err := unix.FcntlFlock(uintptr(f.FD), unix.F_OFD_GETLK, &lk)
		switch {
		case noLocks(err):
			return nil
		case err != nil:
			return &image.IOError{Op: "lock", File: f.Name(), Offset: -1, Err: err}
		case lk.Type == unix.F_UNLCK:
			continue
		case lk.Type == unix.F_RDLCK && lk.Start == 0 && lk.Len == 0:
			continue // an earlier version's reader
		case lk.Start == qemuDenies && lk.Len == openvzLength && !f.Guard:
			continue
		}
		return f.lockedError(lk.Pid, q.does)
	}
	return nil
}

// setLock says whether there are locks; not having the one wanted is an error.
func (f *OSFile) setLock(kind int16, start, n int64) (bool, error) {
	lk := unix.Flock_t{Type: kind, Start: start, Len: n}
	err := unix.FcntlFlock(uintptr(f.FD), unix.F_OFD_SETLK, &lk)
	switch {
	case err == nil:
		return true, nil
	case err == unix.EAGAIN || err == unix.EACCES:
		who := unix.Flock_t{Type: kind, Start: start, Len: n}
		if unix.FcntlFlock(uintptr(f.FD), unix.F_OFD_GETLK, &who) != nil || who.Type == unix.F_UNLCK {
			who.Pid = 0
		}
		return false, f.lockedError(who.Pid, "has it open (or writes of a dead one are still in flight)")
	case noLocks(err):
		return false, nil
	}
	return false, &image.IOError{Op: "lock", File: f.Name(), Offset: -1, Err: err}
}

// lockedError names the other one where the kernel does: holders of
// open-file-description locks have no process (-1).
func (f *OSFile) lockedError(pid int32, does string) error {
	who := "another process"
	if pid > 0 {
		who = fmt.Sprintf("process %d", pid)
	}
	want := "nobody to write to the image"
	if f.Write {
		want = "to be its only user"
	}
	return &image.FormatError{File: f.Name(), Offset: -1, What: "lock", Class: image.ErrLocked, Found: who + " " + does, Want: want}
}

func noLocks(err error) bool {
	return err == unix.ENOLCK || err == unix.EINVAL || plain.Unsupported(err)
}

// unclaimed fails if a block device that is to be written is mounted, swap, or part of
// another device. Those don't lock; they claim it, in the kernel.
func (f *OSFile) unclaimed() error {
	if !f.Block {
		return nil
	}
	fd, err := unix.Open(f.path(), unix.O_RDONLY|unix.O_EXCL|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == unix.EBUSY {
		return &image.FormatError{File: f.Name(), Offset: -1, What: "block device", Class: image.ErrLocked,
			Found: "it is mounted, or in use by another device", Want: "to be its only user"}
	}
	if err == nil {
		unix.Close(fd)
	}
	return nil
}

// path leads to the open file, whatever has its name now.
func (f *OSFile) path() string { return fmt.Sprintf("/proc/self/fd/%d", f.FD) }

// Locked says whether the file's lock is held, as far as the kernel knows.
func (f *OSFile) Locked() bool { return f.locked.Load() }

// Unlock gives the lock back.
func (f *OSFile) Unlock() error {
	// First: whatever comes of it, nobody may rely on the lock any more.
	f.locked.Store(false)
	return unix.FcntlFlock(uintptr(f.FD), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
}

// Lock takes it again.
func (f *OSFile) Lock() error {
	locked, err := f.lock()
	if err == nil {
		f.locked.Store(locked)
	}
	return err
}

// InBundle says that a bundle of OpenVZ's tool, whose descriptor lies beside the image, names it.
func InBundle(image string) bool {
	f, err := plain.Open(filepath.Join(filepath.Dir(image), bundle.DescriptorName), unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, bundle.MaxSize)
	n, err := f.ReadAt(b, 0)
	return (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) && bytes.Contains(b[:n], []byte(filepath.Base(image)))
}
