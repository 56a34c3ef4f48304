// Package dying tells processes that were killed and can't end.
//
// Such a process has threads in storage that doesn't answer, where they can't be interrupted. It
// keeps all that it has until they can end: sockets, locks, and the driver's devices. Nobody is
// told of it: as long as one thread is left, no SIGCHLD is sent, wait finds nothing, and neither a
// pidfd of the process nor one of its first thread (PIDFD_THREAD) becomes readable (seen on Linux
// 6.18 with a FUSE server that doesn't answer). What there is to be seen is in /proc/PID/stat.
package dying

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What /proc/PID/stat tells, counted from the field behind the name (proc(5)): the state, the
// kernel's flags, the signals that wait for the thread, the wait status.
const (
	statState   = 0
	statFlags   = 6
	statPending = 28
	statExit    = 49
	pfExiting   = 0x4   // include/linux/sched.h
	pfDumpCore  = 0x200 // waits for its other threads, to write a core file
)

// Process says whether a process is one of these, and with what status (wait(2)) it ends. Which of
// its threads is held up may be any: the first is gone and others are not, or it is the one that
// closes the files, or that waits in a system call with the signal pending.
//
// The status is the whole process's, as wait would give it in the end (Linux 5.17). The kernel says
// 0 to a reader that may not trace the process.
func Process(pid int) (unix.WaitStatus, bool) {
	fields := statOf(pid)
	if len(fields) <= statExit {
		return 0, false
	}
	number := func(field int) uint64 { n, _ := strconv.ParseUint(fields[field], 10, 64); return n }
	status := unix.WaitStatus(number(statExit))
	if fields[statState] == "Z" {
		return status, len(threadsOf(pid)) > 1
	}
	if number(statFlags)&(pfExiting|pfDumpCore) != 0 || number(statPending)&(1<<(unix.SIGKILL-1)) != 0 {
		return status, true
	}
	return 0, false
}

// Ended says that a process has nothing open any more: it is gone, or of all its threads only the
// first is left, which its parent has not waited for yet.
func Ended(pid int) bool {
	if unix.Kill(pid, 0) == unix.ESRCH {
		return true
	}
	fields := statOf(pid)
	return len(fields) > statState && fields[statState] == "Z" && len(threadsOf(pid)) == 1
}

// statOf are the fields of /proc/PID/stat from the state on; none: it can't be read.
func statOf(pid int) []string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// The name, in parentheses, may contain anything.
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
}

func threadsOf(pid int) []os.DirEntry {
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return threads
}
