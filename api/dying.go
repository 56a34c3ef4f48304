package api

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"holdfast/internal/dying"
)

// Dying says whether a process was killed and can't end: it waits for storage that doesn't answer.
func Dying(pid int) bool {
	_, yes := dying.Process(pid)
	return yes
}

// DyingText is what there is to say of it.
func DyingText(pid int) string {
	return fmt.Sprintf("process %d was killed and has not ended yet: if that lasts, it waits for storage that doesn't answer (/proc/%[1]d/task/*/stack); bring that back, or give its mount up (FUSE: /sys/fs/fuse/connections/*/abort)", pid)
}

// alive refuses a connection on which nobody will ever answer.
func alive(c net.Conn, who string) error {
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
		return Errorf(CodeUnreachable, "%s, %s", who, DyingText(int(peer.Pid)))
	}
	return nil
}
