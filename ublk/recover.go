package ublk

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/internal/dying"
	"holdfast/internal/failpoint"
	"holdfast/ublk/uring"
)

// ErrNotRecoverable is returned by Recover when the device was made without recovery, or is
// another one than the caller takes it for.
var ErrNotRecoverable = errors.New("the device can't be taken over")

// ErrOtherDisk is returned in the second case: the device is as recoverable as before, by who has
// the right one for it. It is an ErrNotRecoverable.
var ErrOtherDisk = fmt.Errorf("%w from another disk", ErrNotRecoverable)

// Recover takes over a device whose server is gone: it waits until the driver knows
// that (which is after the last reference to the dead server's /dev/ublkcN, so
// perhaps some time after its process), starts the recovery, and leaves a command for
// every tag. Start then lets requests come to the handler, those that the dead server had among
// them; before it the caller gets hold of whatever the device is served from, and
// makes sure that no write of the dead server can still reach it.
//
// Number of queues, depth, largest I/O and data path are the device's own,
// whatever cfg says, and so is its size, of which cfg.Size must have at least as much;
// read-only must be as it was. Else ErrOtherDisk. cfg.Tag, unless it is 0, must be the device's:
// else the number is another device's by now, and ErrNoDevice the answer. cfg.ID is ignored.
//
// A recovery may be cut off at any point, by an error or by the death of this
// process, and begun anew. An error leaves the device without a server, as it was.
func (c *Control) Recover(ctx context.Context, id int, cfg Config, h Handler) (*Device, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	have, err := c.Features(ctx)
	if err != nil {
		return nil, err
	}
	info, err := c.orphan(ctx, id, cfg.Tag)
	if err != nil {
		return nil, err
	}
	if cfg.Size, err = c.sameDevice(ctx, info, cfg); err != nil {
		return nil, err
	}
	cfg.ID, cfg.Queues, cfg.Depth, cfg.MaxIO, cfg.Tag = id, info.Queues, info.Depth, info.MaxIO, info.Tag
	cfg.DataPath = Copy
	if info.Flags.Has(zeroCopyFeatures) {
		cfg.DataPath = ZeroCopy
	}
	if !have.Has(FeatureQuiesce) {
		if err := c.sweep(ctx, info); err != nil {
			return nil, err
		}
	}
	if err := patiently(ctx, func() error { return c.StartRecovery(ctx, id) }); err != nil {
		return nil, err
	}
	failpoint.Hit("recover-started")
	d := &Device{ctl: c, cfg: cfg, info: info, fd: -1, ended: make(chan struct{}), recovering: true}
	if err := d.open(ctx, h); err != nil {
		return nil, errors.Join(err, d.Leave(context.WithoutCancel(ctx)))
	}
	failpoint.Hit("recover-fetched")
	return d, nil
}

// Is is ErrNoDevice if the device has another mark than tag, which may be 0 for any: then the
// number was given to another device since.
func (i *Info) Is(tag uint64) error {
	if tag == 0 || tag == i.Tag {
		return nil
	}
	return fmt.Errorf("ublk: device %d: %w any more with the mark %016x: the number is that of one with %016x", i.ID, ErrNoDevice, tag, i.Tag)
}

// Unreleased says that the device has no server any more, and that the driver doesn't know:
// somebody, or the kernel itself, still has a reference to the server's /dev/ublkcN.
func (i *Info) Unreleased() bool {
	return i.State == Live && (i.ServerPID <= 0 || dying.Ended(i.ServerPID))
}

// orphan waits until the driver no longer takes a device for served.
func (c *Control) orphan(ctx context.Context, id int, tag uint64) (info Info, err error) {
	err = patiently(ctx, func() error {
		if info, err = c.GetInfo(ctx, id); err != nil {
			return err
		}
		if err := info.Is(tag); err != nil {
			return err
		}
		switch {
		case !info.Flags.Has(FeatureUserRecovery):
			return fmt.Errorf("ublk: device %d: %w: it was made without recovery", id, ErrNotRecoverable)
		case info.State == Dead:
			return fmt.Errorf("ublk: device %d: %w: it was never started, or has been stopped", id, ErrNotRecoverable)
		case info.Unreleased():
			return fmt.Errorf("ublk: device %d: %w: %w", id, ErrUnreleased, unix.EBUSY)
		case info.State == Live:
			return fmt.Errorf("ublk: device %d is served by process %d: %w", id, info.ServerPID, unix.EBUSY)
		}
		return nil
	})
	return info, err
}

// sameDevice gives the device's size, if it can be served from what cfg says.
func (c *Control) sameDevice(ctx context.Context, info Info, cfg Config) (int64, error) {
	p, err := c.GetParams(ctx, info.ID)
	if err != nil {
		return 0, err
	}
	if cfg.Size < p.Size || p.ReadOnly != cfg.ReadOnly {
		return 0, fmt.Errorf("ublk: device %d: %w: it has %d bytes (read-only: %t), to be served are %d (%t)", info.ID, ErrOtherDisk, p.Size, p.ReadOnly, cfg.Size, cfg.ReadOnly)
	}
	return p.Size, nil
}

// patiently tries again while do says EBUSY, until the context ends.
func patiently(ctx context.Context, do func() error) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := do()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// sweep readies a device for START_USER_RECOVERY on kernels (before 6.15) that clear
// away a server's remains only then, and trip over a recovery that was cut off: with
// no queue fetched they refuse every further one, and with a part of the queues fetched
// they follow a null pointer. So a thread of ours fetches whatever can be, and ends:
// then every queue has had a server, and it is dead. Where there was no recovery
// yet the driver refuses each of these commands, and nothing happens.
func (c *Control) sweep(ctx context.Context, info Info) error {
	path := fmt.Sprintf("/dev/ublkc%d", info.ID)
	var fd int
	err := patiently(ctx, func() (err error) { fd, err = openChar(ctx, path); return err })
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("ublk: device %d: %w: %w", info.ID, ErrUnreleased, err)
	}
	if err != nil {
		return err
	}
	var ring *uring.Ring
	done := make(chan error, 1)
	t := newThread(func() {
		var err error
		if ring, err = uring.New(uring.Params{Entries: 128, CQEntries: 256}); err == nil {
			err = fetchAll(ring, fd, info)
		}
		done <- err
	})
	if err = <-done; err != nil {
		err = fmt.Errorf("ublk: device %d: %w", info.ID, err)
	}
	t.wait() // see Leave
	if ring != nil {
		err = errors.Join(err, ring.Close())
	}
	return errors.Join(err, unix.Close(fd))
}

// fetchAll asks for a command of every tag, and doesn't look at the answers.
func fetchAll(ring *uring.Ring, fd int, info Info) error {
	// The driver wants an address, which it doesn't look at before a request comes.
	// None can come.
	const nowhere = 4096
	submit := func() error {
		_, err := ring.Submit()
		ring.Consume(ring.Ready())
		if err == unix.EAGAIN || err == unix.EBUSY || err == unix.EINTR {
			return nil
		}
		return err
	}
	for q := range info.Queues {
		for tag := range info.Depth {
			s := ring.GetSQE()
			for ; s == nil; s = ring.GetSQE() {
				if err := submit(); err != nil {
					return err
				}
			}
			s.PrepURingCmd(fd, ioFetchReq)
			cmd := (*ioCmd)(unsafe.Pointer(&s.Cmd))
			cmd.qID, cmd.tag, cmd.addr = uint16(q), uint16(tag), nowhere
		}
	}
	return submit()
}

// Leave gives a device up without removing it, as the death of this process would:
// it waits for a new server (Recover, here or in another process), and so do requests.
// Those that the handler owns are left to that server, to be done anew. The handler
// must not have transfers under way on the rings, and its methods are not called any
// more when Leave returns; to complete a request after that does nothing.
//
// After an error of the context's the device may be in between: it no longer gets
// requests, and Leave is to be called again. Not to be called on a queue's thread.
func (d *Device) Leave(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.deleted || d.stopped {
		return ErrStopped
	}
	for _, q := range d.queues {
		_ = q.Post(func() { q.leaving = true })
	}
	if len(d.queues) > 0 {
		if err := d.wait(ctx); err != nil {
			return err
		}
		// As in the death of a process: first the threads end, and with them the commands that they
		// left with the driver, then the rings. In the other order Linux 6.12 frees things twice,
		// or takes the device for served for ever. Nobody else ends the commands, as QUIESCE_DEV
		// would: before 7.3 the driver may then complete one that a COMMIT_AND_FETCH, on another
		// processor, has not put on io_uring's list of what can be cancelled yet. It gets there all
		// the same, freed, and the kernel's worker that takes the ring apart runs over it for ever,
		// or into a null pointer.
		for _, q := range d.queues {
			q.thread.wait()
			if q.leaving {
				q.release()
			}
		}
	}
	d.deleted = true
	return d.closeDevice()
}
