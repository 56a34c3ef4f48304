package ublk

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// setIOFlusher marks the calling thread as one that memory reclaim waits for
// (PR_SET_IO_FLUSHER): its allocations do not start I/O, and dirty-page limits do
// not throttle it. Without CAP_SYS_RESOURCE the thread goes without.
func setIOFlusher() error {
	return unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
}

// ProtectProcess keeps a server clear of memory reclaim, which may be waiting for
// the server itself: every thread of the process, and those that come, is marked
// as an I/O flusher, and the process's memory is locked, pages as they are first
// used. Queues' threads do the first by themselves; what the Go runtime, goroutines
// of the handler and libraries run on needs this call. Call it before making
// devices: it interrupts every thread, and a thread stuck in the kernel would
// hold it up.
//
// It needs CAP_SYS_RESOURCE and CAP_IPC_LOCK (or a sufficient RLIMIT_MEMLOCK); what
// could be had stays in force when the error tells of the rest.
func ProtectProcess() error {
	var errs []error
	if _, _, errno := syscall.AllThreadsSyscall6(syscall.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0); errno != 0 {
		errs = append(errs, fmt.Errorf("ublk: mark the threads as I/O flushers: %w", errno))
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		errs = append(errs, fmt.Errorf("ublk: lock the memory: %w", err))
	}
	return errors.Join(errs...)
}
