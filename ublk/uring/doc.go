// Package uring is a small io_uring ring for one thread.
//
// It exists for servers that keep a ring per queue and a locked OS thread per
// ring: the thread fills submission entries, enters the kernel once to submit
// them and to wait, and drains every completion that is there. Nothing here
// allocates after New, and nothing takes a lock.
//
// # Threads
//
// A Ring is set up with SINGLE_ISSUER and DEFER_TASKRUN: the kernel accepts
// submissions and registrations only from the thread that called New, and
// runs completion work only when that thread enters the kernel to wait. So call
// runtime.LockOSThread, then New, and use the ring on that goroutine alone.
// Any other thread gets EEXIST. A completion is not seen by looking at the
// memory only; a thread that never enters the kernel never sees one.
//
// # Waiting
//
// SubmitAndWait enters the kernel through a system call that the Go scheduler
// knows of, so that a stop-the-world never waits for it. The runtime's
// preemption signals interrupt the wait: that, and a timeout, end the call
// without an error and without a completion. Callers loop.
//
// # Memory
//
// Buffers named by an SQE belong to the kernel until its CQE has come. Memory
// of the Go heap does for that (it does not move) as long as something keeps it
// reachable; stack memory does not. Pass memory from mmap, or objects that
// the goroutine holds elsewhere.
package uring
