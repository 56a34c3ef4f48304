package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// State is a device's state, UBLK_S_DEV_*.
type State int

// The states. A device that was added and not started yet is Dead too.
const (
	Dead     State = iota // not started, or stopped
	Live                  // served
	Quiesced              // without a server; I/O waits for recovery
	FailIO                // without a server; I/O fails until recovery
)

func (s State) String() string {
	switch s {
	case Dead:
		return "dead"
	case Live:
		return "live"
	case Quiesced:
		return "quiesced"
	case FailIO:
		return "fail-io"
	}
	return fmt.Sprintf("state %d", int(s))
}

// Info is what the driver knows of a device.
type Info struct {
	ID        int
	Queues    int
	Depth     int
	MaxIO     int // bytes of the largest READ or WRITE
	State     State
	ServerPID int // -1: none
	Flags     Feature
	Tag       uint64 // Config.Tag, ublksrv_flags to the driver
}

func (d *devInfo) public() Info {
	return Info{
		ID: int(d.devID), Queues: int(d.nrHWQueues), Depth: int(d.queueDepth), MaxIO: int(d.maxIOBufBytes),
		State: State(d.state), ServerPID: int(d.ublksrvPID), Flags: Feature(d.flags), Tag: d.ublksrvFlags,
	}
}

// AddRequest is what ADD_DEV is asked for.
type AddRequest struct {
	ID     int // -1: the driver chooses
	Queues int
	Depth  int
	MaxIO  int // bytes, a multiple of the page size
	Flags  Feature
	Tag    uint64
}

// Add makes a device (ADD_DEV). What was granted may be less than what was asked
// for: the driver clears flags that it does not know without an error and cuts the
// number of queues to that of possible CPUs. ErrTooManyDevices, ErrExists.
func (c *Control) Add(ctx context.Context, r AddRequest) (Info, error) {
	d := &devInfo{
		nrHWQueues: uint16(r.Queues), queueDepth: uint16(r.Depth), maxIOBufBytes: uint32(r.MaxIO),
		devID: uint32(int32(r.ID)), ublksrvPID: -1, flags: uint64(r.Flags), ublksrvFlags: r.Tag,
	}
	cmd := command{op: cmdAddDev, name: "ADD_DEV", dev: r.ID, mem: unsafe.Pointer(d), n: int(unsafe.Sizeof(*d))}
	if _, err := c.run(ctx, cmd); err != nil {
		return Info{}, err
	}
	return d.public(), nil
}

// GetInfo asks for a device's Info (GET_DEV_INFO). ErrNoDevice.
func (c *Control) GetInfo(ctx context.Context, id int) (Info, error) {
	d := new(devInfo)
	cmd := command{op: cmdGetDevInfo, name: "GET_DEV_INFO", dev: id, mem: unsafe.Pointer(d), n: int(unsafe.Sizeof(*d))}
	if _, err := c.run(ctx, cmd); err != nil {
		return Info{}, err
	}
	return d.public(), nil
}

// SetParams sets the parameters of a device that was not started yet.
func (c *Control) SetParams(ctx context.Context, id int, p Params) error {
	raw := p.raw()
	_, err := c.run(ctx, command{op: cmdSetParams, name: "SET_PARAMS", dev: id, mem: unsafe.Pointer(raw), n: int(raw.len)})
	return err
}

// GetParams asks for the parameters, with the device numbers.
func (c *Control) GetParams(ctx context.Context, id int) (Params, error) {
	raw := &params{len: uint32(unsafe.Sizeof(params{}))}
	if _, err := c.run(ctx, command{op: cmdGetParams, name: "GET_PARAMS", dev: id, mem: unsafe.Pointer(raw), n: int(raw.len)}); err != nil {
		return Params{}, err
	}
	return raw.public(), nil
}

// Start makes the block device appear (START_DEV). Every tag of every queue must
// have been fetched by this process, and the queues must be served: reads of the
// partition table come before it returns, on older kernels.
func (c *Control) Start(ctx context.Context, id int) error {
	_, err := c.run(ctx, command{op: cmdStartDev, name: "START_DEV", dev: id, data: pid()})
	return err
}

// Stop removes the block device (STOP_DEV), whoever has it open. It waits for
// the requests in flight, so the queues must be served until it has returned;
// then every tag's command has come back aborted.
func (c *Control) Stop(ctx context.Context, id int) error {
	return c.simple(ctx, cmdStopDev, "STOP_DEV", id, 0)
}

// TryStop is Stop for a device that nobody has open, otherwise EBUSY.
// FeatureSafeStop.
func (c *Control) TryStop(ctx context.Context, id int) error {
	if err := c.Require(ctx, FeatureSafeStop); err != nil {
		return err
	}
	return c.simple(ctx, cmdTryStopDev, "TRY_STOP_DEV", id, 0)
}

// Delete removes a device for good (DEL_DEV), stopping it first if need be, and
// waits until its number is free again: until every descriptor and mapping of
// its /dev/ublkcN is gone. A process that deletes a device which it serves itself
// waits for itself; see Device.Stop for the order.
func (c *Control) Delete(ctx context.Context, id int) error {
	return c.simple(ctx, cmdDelDev, "DEL_DEV", id, 0)
}

// DeleteAsync is Delete without the wait (DEL_DEV_ASYNC, Linux 6.9).
func (c *Control) DeleteAsync(ctx context.Context, id int) error {
	return c.simple(ctx, cmdDelDevAsync, "DEL_DEV_ASYNC", id, 0)
}

// UpdateSize changes the size of a started device, in bytes, a multiple of 512.
// FeatureUpdateSize.
func (c *Control) UpdateSize(ctx context.Context, id int, size int64) error {
	if size <= 0 || size%512 != 0 {
		return &ConfigError{"Size", fmt.Sprintf("%d bytes: must be a positive multiple of 512", size)}
	}
	if err := c.Require(ctx, FeatureUpdateSize); err != nil {
		return err
	}
	return c.simple(ctx, cmdUpdateSize, "UPDATE_SIZE", id, uint64(size>>sectorShift))
}

// StartRecovery tells the driver that a new server will take the device over
// (START_USER_RECOVERY). EBUSY until the last one's /dev/ublkcN is really closed.
func (c *Control) StartRecovery(ctx context.Context, id int) error {
	return c.simple(ctx, cmdStartUserRecovery, "START_USER_RECOVERY", id, 0)
}

// EndRecovery lets requests flow to this process (END_USER_RECOVERY), once every tag
// has been fetched.
func (c *Control) EndRecovery(ctx context.Context, id int) error {
	return c.simple(ctx, cmdEndUserRecovery, "END_USER_RECOVERY", id, pid())
}

func (c *Control) simple(ctx context.Context, op uint32, name string, id int, data uint64) error {
	_, err := c.run(ctx, command{op: op, name: name, dev: id, data: data})
	return err
}

// CPUSet is a set of processors.
type CPUSet [128]uint64

// Has reports whether cpu is in the set.
func (s *CPUSet) Has(cpu int) bool { return cpu >= 0 && cpu < len(s)*64 && s[cpu/64]>>(cpu%64)&1 != 0 }

// List returns the processors in ascending order.
func (s *CPUSet) List() []int {
	var cpus []int
	for i := range len(s) * 64 {
		if s.Has(i) {
			cpus = append(cpus, i)
		}
	}
	return cpus
}

// pin binds the calling thread to the set.
func (s *CPUSet) pin() error {
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(*s), uintptr(unsafe.Pointer(s)))
	if errno != 0 {
		return errno
	}
	return nil
}

// Affinity asks which processors' requests come to a queue (GET_QUEUE_AFFINITY).
func (c *Control) Affinity(ctx context.Context, id, queue int) (*CPUSet, error) {
	s := new(CPUSet)
	cmd := command{op: cmdGetQueueAffinity, name: "GET_QUEUE_AFFINITY", dev: id, data: uint64(queue), mem: unsafe.Pointer(s), n: int(unsafe.Sizeof(*s))}
	if _, err := c.run(ctx, cmd); err != nil {
		return nil, err
	}
	return s, nil
}

// List returns the numbers of the devices that exist, in ascending order.
// Whether a device of a number is ours is for its Info.Tag to tell.
func (c *Control) List() ([]int, error) {
	names, err := os.ReadDir("/sys/class/ublk-char")
	var ids []int
	if err == nil {
		for _, e := range names {
			if id, err := strconv.Atoi(strings.TrimPrefix(e.Name(), "ublkc")); err == nil {
				ids = append(ids, id)
			}
		}
	} else if errors.Is(err, os.ErrNotExist) {
		paths, err := filepath.Glob("/dev/ublkc[0-9]*")
		if err != nil {
			return nil, fmt.Errorf("ublk: list devices: %w", err)
		}
		for _, p := range paths {
			if id, err := strconv.Atoi(strings.TrimPrefix(p, "/dev/ublkc")); err == nil {
				ids = append(ids, id)
			}
		}
	} else {
		return nil, fmt.Errorf("ublk: list devices: %w", err)
	}
	slices.Sort(ids)
	return ids, nil
}
