package uring

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

func (r *Ring) register(op uintptr, arg unsafe.Pointer, n uintptr) (int, error) {
	got, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), op, uintptr(arg), n, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(got), nil
}

// RegisterFilesSparse makes a table of n empty slots for files, to be filled by
// UpdateFile and named by entries with the flag FixedFile.
func (r *Ring) RegisterFilesSparse(n int) error {
	r.wait.reg = rsrcRegister{nr: uint32(n), flags: rsrcSparse}
	if _, err := r.register(registerFiles2, unsafe.Pointer(&r.wait.reg), unsafe.Sizeof(r.wait.reg)); err != nil {
		return fmt.Errorf("uring: register a table of %d files: %w", n, err)
	}
	return nil
}

// UpdateFile puts fd into slot, -1 empties it. Operations already submitted keep
// the file they began with; the ring holds a reference of its own, so fd may
// be closed afterwards.
func (r *Ring) UpdateFile(slot, fd int) error {
	*(*int32)(unsafe.Pointer(&r.wait.fds[0])) = int32(fd)
	r.wait.upd = rsrcUpdate{offset: uint32(slot), data: uint64(uintptr(unsafe.Pointer(&r.wait.fds[0])))}
	if _, err := r.register(registerFilesUpdate, unsafe.Pointer(&r.wait.upd), 1); err != nil {
		return fmt.Errorf("uring: put descriptor %d into file slot %d: %w", fd, slot, err)
	}
	return nil
}

// RegisterBuffersSparse makes a table of n empty slots for buffers, to be filled
// by a driver (ublk's zero copy).
func (r *Ring) RegisterBuffersSparse(n int) error {
	r.wait.reg = rsrcRegister{nr: uint32(n), flags: rsrcSparse}
	if _, err := r.register(registerBuffers2, unsafe.Pointer(&r.wait.reg), unsafe.Sizeof(r.wait.reg)); err != nil {
		return fmt.Errorf("uring: register a table of %d buffers: %w", n, err)
	}
	return nil
}

// MaxWorkers lets the calling thread's rings have n worker threads at once for
// operations on regular files and block devices, which are made when wanted. The
// kernel's own limit is four a processor, at most as many as entries.
func (r *Ring) MaxWorkers(n int) error {
	*(*[2]uint32)(unsafe.Pointer(&r.wait.fds[0])) = [2]uint32{uint32(n), 0} // bounded, unbounded; 0: as it is
	if _, err := r.register(registerMaxWorkers, unsafe.Pointer(&r.wait.fds[0]), 2); err != nil {
		return fmt.Errorf("uring: let %d workers be: %w", n, err)
	}
	return nil
}

// RegisterRing registers the ring's own descriptor with the calling thread, which
// saves the kernel the look-up at every entry. Best effort: without it the ring
// works just the same.
func (r *Ring) RegisterRing() error {
	// struct io_uring_rsrc_update: offset -1 lets the kernel choose and answer there.
	r.wait.upd = rsrcUpdate{offset: ^uint32(0), data: uint64(r.fd)}
	if _, err := r.register(registerRingFds, unsafe.Pointer(&r.wait.upd), 1); err != nil {
		return fmt.Errorf("uring: register the ring's descriptor: %w", err)
	}
	r.enterFd = uintptr(r.wait.upd.offset)
	r.enterFlags = enterRegisteredRing
	return nil
}

func (r *Ring) unregisterRing() {
	r.wait.upd = rsrcUpdate{offset: uint32(r.enterFd)}
	// The table goes away with the thread in any case.
	_, _ = r.register(unregisterRingFds, unsafe.Pointer(&r.wait.upd), 1)
	r.enterFd, r.enterFlags = uintptr(r.fd), 0
}
