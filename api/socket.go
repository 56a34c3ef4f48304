package api

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxSocketPath is sizeof(sockaddr_un.sun_path) less the final NUL.
const maxSocketPath = 107

// SocketAddress is how a socket is to be called in bind(2) and connect(2): by its path, and if
// that is too long by way of its directory, which is open until release is called.
func SocketAddress(path string) (addr string, release func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	release = func() { unix.Close(fd) }
	addr = fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(path))
	if _, err := os.Stat(filepath.Dir(addr)); err != nil {
		release()
		return "", nil, fmt.Errorf("the path of the socket %q has %d bytes, and a unix socket's can have %d unless /proc is there: choose a shorter --run-dir: %w", path, len(path), maxSocketPath, err)
	}
	if len(addr) > maxSocketPath {
		release()
		return "", nil, fmt.Errorf("the name of the socket %q is too long", path)
	}
	return addr, release, nil
}

// dialSocket connects to a socket, however long its path is.
func dialSocket(ctx context.Context, d *net.Dialer, path string) (net.Conn, error) {
	addr, release, err := SocketAddress(path)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "unix", Err: err}
	}
	defer release()
	return d.DialContext(ctx, "unix", addr)
}
