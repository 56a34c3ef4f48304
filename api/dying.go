package api

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A process that was killed may have threads in storage that doesn't answer, where they can't be
// interrupted. It keeps all that it has until they can end: sockets, locks, and the
// driver's devices.

// What /proc/PID/stat tells, counted from the field behind the name (proc(5)): the state, the
// kernel's flags, the signals that wait for the thread.
const (
	statState   = 0
	statFlags   = 6
	statPending = 28
	pfExiting   = 0x4 // include/linux/sched.h
)

// Dying says whether a process is one of these. Which of its threads is held up may be any: the
// first is gone and others are not, or it is the one that closes the files, or that waits in
// a system call with the signal pending.
func Dying(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The name, in parentheses, may contain anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) <= statPending {
		return false
	}
	if fields[statState] == "Z" {
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		return len(threads) > 1
	}
	flags, _ := strconv.ParseUint(fields[statFlags], 10, 64)
	pending, _ := strconv.ParseUint(fields[statPending], 10, 64)
	return flags&pfExiting != 0 || pending&(1<<(unix.SIGKILL-1)) != 0
}

// DyingText is what there is to say of it.
func DyingText(pid int) string {
	return fmt.Sprintf("process %d was killed and has not ended yet: if that lasts, it waits for storage that doesn't answer (/proc/%[1]d/task/*/stack); bring that back, or give its mount up (FUSE: /sys/fs/fuse/connections/*/abort)", pid)
}

// alive refuses a connection on which nobody will ever answer.
func alive(c net.Conn) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil
	}
	var peer *unix.Ucred // who listened
	if raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return nil
	}
	if Dying(int(peer.Pid)) {
		return Errorf(CodeUnreachable, "the daemon, %s", DyingText(int(peer.Pid)))
	}
	return nil
}
