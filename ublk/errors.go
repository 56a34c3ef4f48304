package ublk

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/ublk/uring"
)

// What can be wrong with the machine rather than with a call.
var (
	// ErrNoDriver is returned by Open when there is no control device.
	ErrNoDriver = errors.New("the kernel's ublk driver is not there: load it with `modprobe ublk_drv` (Linux 6.5 or later, CONFIG_BLK_DEV_UBLK)")
	// ErrPermission is returned by Open, and by commands, when the kernel refuses this process.
	ErrPermission = errors.New("not permitted: ublk devices need CAP_SYS_ADMIN and access to /dev/ublk-control")
	// ErrIOUringDisabled is returned when the sysctl kernel.io_uring_disabled or a seccomp filter
	// forbids io_uring.
	ErrIOUringDisabled = uring.ErrDisabled
	// ErrTooOld is returned when the driver has no GET_FEATURES, or io_uring can't defer task work.
	ErrTooOld = errors.New("this kernel's ublk driver is too old: Linux 6.5 or later is needed")
	// ErrTooManyDevices is returned when ADD_DEV is refused for the module parameter ublks_max.
	ErrTooManyDevices = errors.New("the driver's limit of devices is reached: raise it in /sys/module/ublk_drv/parameters/ublks_max")
	// ErrNoDevice is returned by commands about a number that no device has.
	ErrNoDevice = errors.New("no such device")
	// ErrUnreleased is returned when the driver takes a device for served whose server is gone.
	ErrUnreleased = errors.New("the server is gone, and the kernel has not released it")
	// ErrExists is returned when the number asked for is taken.
	ErrExists = errors.New("a device of this number exists already")
	// ErrClosed is returned by commands on a Control that was closed.
	ErrClosed = errors.New("the control device was closed")
	// ErrCommandsHang is returned when what was asked of the device before has no answer yet.
	ErrCommandsHang = errors.New("earlier commands have no answer from the kernel, perhaps as requests of the device hang in its storage")
	// ErrStopped is returned by calls on a device whose queues have ended.
	ErrStopped = errors.New("the device was stopped")
)

// CommandError is a control command that failed. Its cause is an unix.Errno, one
// of this package's Err values together with the errno, or the context's error.
type CommandError struct {
	Command string // "ADD_DEV"
	Device  int    // -1: none yet
	Err     error
}

var _ error = (*CommandError)(nil)

func (e *CommandError) Error() string {
	if e.Device < 0 {
		return fmt.Sprintf("ublk: %s: %v", e.Command, e.Err)
	}
	return fmt.Sprintf("ublk: %s of device %d: %v", e.Command, e.Device, e.Err)
}

func (e *CommandError) Unwrap() error { return e.Err }

// explain puts what an errno means for this command before the errno.
func explain(cmd command, errno unix.Errno) error {
	var why error
	switch errno {
	case unix.EPERM:
		why = ErrPermission
	case unix.ENODEV:
		if cmd.op != cmdUpdateSize && cmd.op != cmdTryStopDev {
			why = ErrNoDevice
		}
	case unix.EEXIST:
		if cmd.op == cmdAddDev {
			why = ErrExists
		}
	case unix.EACCES:
		switch cmd.op {
		case cmdAddDev:
			why = ErrTooManyDevices
			if b, err := os.ReadFile("/sys/module/ublk_drv/parameters/ublks_max"); err == nil {
				why = fmt.Errorf("%w (now %s)", ErrTooManyDevices, strings.TrimSpace(string(b)))
			}
		case cmdSetParams:
			why = errors.New("parameters cannot be changed after START_DEV")
		}
	case unix.EBUSY:
		switch cmd.op {
		case cmdStartUserRecovery:
			why = errors.New("the last server is not gone yet, or the device is live: try again")
		case cmdTryStopDev:
			why = errors.New("the device is in use")
		}
	case unix.EINVAL:
		switch cmd.op {
		case cmdSetParams, cmdStartDev:
			why = errors.New("the driver refuses the parameters")
		case cmdStartUserRecovery, cmdEndUserRecovery:
			why = errors.New("the device was not made with USER_RECOVERY")
		}
	case unix.EOPNOTSUPP:
		why = errors.New("this kernel's driver does not know the command")
	}
	if why == nil {
		return errno
	}
	return fmt.Errorf("%w (%w)", why, errno)
}

// ConfigError is a field of a Config that cannot be had.
type ConfigError struct {
	Field  string
	Reason string
}

var _ error = (*ConfigError)(nil)

func (e *ConfigError) Error() string { return "ublk: config: " + e.Field + ": " + e.Reason }
