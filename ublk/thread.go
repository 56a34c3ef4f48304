package ublk

import (
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// thread is an OS thread of its own for one function, and ends with it.
type thread struct{ tid chan int }

func newThread(fn func()) *thread {
	t := &thread{make(chan int, 1)}
	go t.run(fn)
	return t
}

func (t *thread) run(fn func()) {
	// Never unlocked: pinning and flags end with the thread, which ends with the
	// goroutine.
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The process' first thread never ends. While it is ours another
		// goroutine gets another one.
		begun := make(chan struct{})
		go func() { close(begun); t.run(fn) }()
		<-begun
		runtime.UnlockOSThread()
		return
	}
	t.tid <- unix.Gettid()
	fn()
}

// wait returns when the kernel has taken the thread down, a moment after its function
// has returned.
func (t *thread) wait() {
	tid := <-t.tid
	t.tid <- tid
	for path := fmt.Sprintf("/proc/self/task/%d", tid); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err != nil {
			return
		}
	}
}
