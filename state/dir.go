package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"golang.org/x/sys/unix"

	"holdfast/api"
)

// Run is a run directory. What is in it is of one boot: RUN/boot says of which.
type Run string

func (r Run) Key() string        { return filepath.Join(string(r), keyName) }
func (r Run) KeyHolders() string { return filepath.Join(string(r), "key.json") }
func (r Run) Socket() string     { return filepath.Join(string(r), api.SocketName) }
func (r Run) Claims() string     { return filepath.Join(string(r), "claims") }
func (r Run) Devices() string    { return filepath.Join(string(r), copies) }
func (r Run) boot() string       { return filepath.Join(string(r), "boot") }

// Device is the directory of one device.
func (r Run) Device(name string) DeviceDir { return DeviceDir(filepath.Join(r.Devices(), name)) }

// DeviceDir is the directory that a device's server has in the run directory.
type DeviceDir string

func (d DeviceDir) Lock() string   { return filepath.Join(string(d), "lock") }
func (d DeviceDir) Socket() string { return filepath.Join(string(d), "sock") }
func (d DeviceDir) Record() string { return filepath.Join(string(d), "record"+RecordSuffix) }
func (d DeviceDir) Events() string { return filepath.Join(string(d), "events") }
func (d DeviceDir) Log() string    { return filepath.Join(string(d), "log") }

// bootForm is what boot_id reads like (random(4)).
var bootForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
})

// Create makes the directory, with those for claims and devices, and clears away what is in it
// of an earlier boot, if it isn't in memory. Every process calls it before it does anything
// else there.
func (r Run) Create() error {
	err := r.create(BootID())
	if err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	return nil
}

func (r Run) create(boot string) error {
	if err := os.MkdirAll(string(r), 0o755); err != nil {
		return err
	}
	if err := r.thisBoot(boot); err != nil && !readOnly(err) {
		return err
	}
	for _, dir := range []string{r.Claims(), r.Devices()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// thisBoot empties a directory of another boot. One that doesn't say of which it is was made by
// an earlier version, in this boot or not: its files tell for themselves.
func (r Run) thisBoot(boot string) error {
	if boot == "" {
		return nil // not known, so neither is anything else
	}
	f, err := os.OpenFile(r.boot(), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	// Of those that start at the same time, one clears it and the others wait for that.
	for {
		err := onFd(f, func(fd uintptr) error { return unix.Flock(int(fd), unix.LOCK_EX) })
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %q: %w", r.boot(), err)
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, 2*bootLen))
	if err != nil {
		return err
	}
	was := string(bytes.TrimSpace(b))
	if was == boot {
		return nil
	}
	if bootForm().MatchString(was) {
		if err := r.clear(); err != nil {
			return err
		}
	}
	if _, err := f.WriteAt([]byte(boot+"\n"), 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(boot) + 1))
}

func (r Run) clear() error {
	var failed error
	for _, dir := range []string{r.Claims(), r.Devices()} {
		failed = errors.Join(failed, os.RemoveAll(dir))
	}
	// Not the control socket, which a service manager may have made in this boot already.
	for _, file := range []string{r.Key(), r.KeyHolders()} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		return fmt.Errorf("files of an earlier boot: %w", failed)
	}
	return nil
}

// Listen opens the device's socket, in the place of one that an earlier server left. The
// device's lock is held, and nobody else comes into the directory. Close leaves the socket
// where it is; the next server replaces it.
func (d DeviceDir) Listen() (*net.UnixListener, error) {
	path := d.Socket()
	if err := RemoveSocket(path); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	addr, release, err := api.SocketAddress(path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	defer release()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: addr, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket %q: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}

// RemoveSocket removes a socket that nobody listens on any more, if there is one, and nothing
// that is no socket.
func RemoveSocket(path string) error {
	switch fi, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%q is in the way and is not a socket: remove it", path)
	}
	return os.Remove(path)
}
