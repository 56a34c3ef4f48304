package manager

import (
	"fmt"
	"net"
	"os"

	"holdfast/api"
	"holdfast/state"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// controlSocket opens the control socket, or takes the one that a service manager has
// opened for us. The run directory's lock is held, so a socket that is there has no manager
// behind it.
//
// owned says that the socket is ours to remove at the end. A service manager's stays:
// who connects while there is no manager waits for the next one.
func controlSocket(path string) (l *net.UnixListener, owned bool, err error) {
	if l, err := passedSocket(path); l != nil || err != nil {
		return l, false, err
	}
	if err := state.RemoveSocket(path); err != nil {
		return nil, false, fmt.Errorf("control socket: %w", err)
	}
	addr, release, err := api.SocketAddress(path)
	if err != nil {
		return nil, false, fmt.Errorf("control socket: %w", err)
	}
	defer release()
	// With the umask there is no moment at which others could connect. It is
	// the whole process', but nothing else of us runs yet.
	mask := unix.Umask(0o177)
	l, err = net.ListenUnix("unix", &net.UnixAddr{Name: addr, Net: "unix"})
	unix.Umask(mask)
	if err != nil {
		return nil, false, fmt.Errorf("control socket: %w", err)
	}
	// Close removes the socket itself, while the lock is still held.
	l.SetUnlinkOnClose(false)
	return l, true, nil
}

// PassedSocket is the control socket, if a service manager has passed it, for a process that
// follows; else nil.
func (m *Manager) PassedSocket() (*os.File, error) {
	if m.front.owned {
		return nil, nil
	}
	return m.front.listener.File()
}

// passedSocket is the listening socket of path among the descriptors that a service manager
// has passed (sd_listen_fds(3)), or nil. One of another path means that unit and --run-dir
// disagree: serving on either of the two would have half of the clients wait for ever.
func passedSocket(path string) (*net.UnixListener, error) {
	files := activation.Files(true)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if len(files) == 0 {
		return nil, nil
	}
	f := files[0] // the unit has one
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("control socket: what the service manager has passed as %q is not a listening socket: %w", f.Name(), err)
	}
	if u, ok := l.(*net.UnixListener); ok && l.Addr().String() == path {
		u.SetUnlinkOnClose(false)
		return u, nil
	}
	l.Close()
	return nil, fmt.Errorf("control socket: the service manager has passed %s, and the run directory wants %s: make ListenStream= and --run-dir agree", l.Addr(), path)
}
