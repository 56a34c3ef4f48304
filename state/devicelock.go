package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
)

// A device's lock says that a server of it lives. It ends with the last thread of the process,
// so a server that was killed and hangs in storage has it, and the next one waits.
//
// It is a lock of an open file (F_OFD_SETLK) and not flock(2): whether it is held can be
// asked without taking it, so nobody who asks keeps a server from starting. The second lock
// says that the process' number in the file is that of who has the first.
const (
	lockHeld = int64(1) << 40
	lockPID  = int64(1) << 41
)

// How often a lock is tried that another process has: often while servers follow each other,
// less often later, when something hangs.
const (
	lockPause     = 10 * time.Millisecond
	lockPatience  = 500 // times
	lockLongPause = 100 * time.Millisecond
	lockSteps     = 50 // times between looks at whether the process is dying
)

// DeviceLock is the right to serve a device.
type DeviceLock struct {
	dir  DeviceDir
	file *os.File
}

// LockDevice takes a device's lock, and makes the device's directory. While another process
// has it, it waits, and calls waiting with that process' number (0: not known) and whether it
// is dying: at first, and when either changes.
func LockDevice(ctx context.Context, runDir, name string, waiting func(pid int, dying bool)) (*DeviceLock, error) {
	dir := Run(runDir).Device(name)
	said, wasPID, wasDying := false, 0, false
	for try := 0; ; try++ {
		l, err := tryDeviceLock(dir)
		if l != nil || err != nil {
			return l, err
		}
		pid, held := Probe(runDir, name)
		if try%lockSteps == 0 || pid != wasPID {
			if dying := pid > 0 && api.Dying(pid); held && waiting != nil && (!said || pid != wasPID || dying != wasDying) {
				said, wasPID, wasDying = true, pid, dying
				waiting(pid, dying)
			}
		}
		pause := lockPause
		if try > lockPatience {
			pause = lockLongPause
		}
		select {
		case <-ctx.Done():
			if wasDying {
				return nil, fmt.Errorf("device %q has a server yet: %s: %w", name, api.DyingText(pid), ctx.Err())
			}
			return nil, fmt.Errorf("device %q has a server yet, process %d: %w", name, pid, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// tryDeviceLock gives nil without an error if another process has it.
func tryDeviceLock(dir DeviceDir) (*DeviceLock, error) {
	if err := os.MkdirAll(string(dir), 0o700); errors.Is(err, fs.ErrExist) && !inTheWay(string(dir)) {
		return nil, nil // it was there, and then somebody removed it
	} else if err != nil {
		return nil, fmt.Errorf("the device's directory: %w", err)
	}
	file, err := os.OpenFile(dir.Lock(), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // somebody removes the directory: see Remove
	}
	if err != nil {
		return nil, fmt.Errorf("the device's lock: %w", err)
	}
	err = setLock(file, unix.F_WRLCK, lockHeld)
	if err != nil || !stillAt(file, dir.Lock()) {
		file.Close()
		if err == nil || locked(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("lock %q: %w", dir.Lock(), err)
	}
	// Of one length, in the place of the last one: that needs no space. Without it the lock
	// is held by nobody in particular.
	if _, err := file.WriteAt(fmt.Appendf(nil, "%-10d\n", os.Getpid()), 0); err == nil {
		_ = setLock(file, unix.F_WRLCK, lockPID)
	}
	return &DeviceLock{dir, file}, nil
}

// inTheWay: something is there that is no directory.
func inTheWay(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && !fi.IsDir()
}

// Probe says whether a device has a server, and which process that is, 0: it can't be told
// yet. It takes nothing and waits for nothing.
func Probe(runDir, name string) (pid int, held bool) {
	file, err := os.OpenFile(Run(runDir).Device(name).Lock(), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, false
	}
	defer file.Close()
	if isLocked(file, lockHeld, 1) < 0 {
		return 0, false
	}
	b := make([]byte, 16)
	n, _ := file.ReadAt(b, 0)
	if isLocked(file, lockPID, 1) < 0 {
		return 0, true
	}
	line, _, _ := bytes.Cut(b[:n], []byte{'\n'})
	pid, err = strconv.Atoi(string(bytes.TrimSpace(line)))
	if err != nil || pid < 0 {
		return 0, true
	}
	return pid, true
}

// Release ends the lock. The files stay.
func (l *DeviceLock) Release() { l.file.Close() }

// Remove ends the lock, and removes the device's directory: nothing of the device is left. Who
// waits for the lock gets one in a new directory.
func (l *DeviceLock) Remove() error {
	defer l.file.Close()
	entries, err := os.ReadDir(string(l.dir))
	if err != nil {
		return fmt.Errorf("the device's directory: %w", err)
	}
	var failed error
	for _, e := range entries {
		if path := filepath.Join(string(l.dir), e.Name()); path != l.dir.Lock() {
			failed = errors.Join(failed, os.Remove(path))
		}
	}
	if failed == nil {
		// Last, as it keeps others out of the directory.
		failed = os.Remove(l.dir.Lock())
	}
	if failed != nil {
		return fmt.Errorf("the device's directory: %w", failed)
	}
	_ = os.Remove(string(l.dir)) // unless the next one is in it already
	return nil
}
