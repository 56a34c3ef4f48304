package control

import (
	"bytes"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// A process that was killed may have threads in storage that doesn't answer, where they can't be
// interrupted. It keeps all that it has until they can end: sockets, locks, and the
// driver's devices.

// dying says whether a process is one of these: its first thread is gone, and not all are.
func dying(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The name, in parentheses, may contain anything.
	_, state, ok := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(" "))
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return ok && bytes.HasPrefix(state, []byte("Z")) && len(threads) > 1
}

// dyingText is what there is to say of it.
func dyingText(pid int) string {
	return fmt.Sprintf("process %d was killed and can't end: it waits for storage that doesn't answer (/proc/%[1]d/task/*/stack); bring that back, or give its mount up (FUSE: /sys/fs/fuse/connections/*/abort)", pid)
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
	if dying(int(peer.Pid)) {
		return fail(CodeUnreachable, "the daemon, %s", dyingText(int(peer.Pid)))
	}
	return nil
}
