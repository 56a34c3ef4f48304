package ublk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Device is a block device that this process serves.
type Device struct {
	ctl     *Control
	cfg     Config
	info    Info
	queues  []*Queue
	handler Handler
	zeroes  []byte // MaxIO zero bytes, to be copied from
	spare   spare

	running atomic.Int32 // queue threads
	ended   chan struct{}

	mu      sync.Mutex // the life of the device: Start and Stop one at a time
	fd      int        // /dev/ublkcN, -1 when closed
	stopped bool       // STOP_DEV has returned
	deleted bool
	// recovering: a new server's, until Start.
	recovering bool
	errMu      sync.Mutex
	lastErrs   []error
}

// Create makes a device and starts its queues: ADD_DEV, SET_PARAMS, a thread and a
// ring per queue, FETCH for every tag. The block device appears with Start. When
// Create fails nothing is left behind.
//
// Errors: *ConfigError, *MissingFeatureError, *CommandError, or what opening and
// mapping /dev/ublkcN brought.
func (c *Control) Create(ctx context.Context, cfg Config, h Handler) (*Device, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	flags, err := cfg.flags(ctx, c)
	if err != nil {
		return nil, err
	}
	info, err := c.Add(ctx, AddRequest{ID: cfg.ID, Queues: cfg.Queues, Depth: cfg.Depth, MaxIO: cfg.MaxIO, Flags: flags, Tag: cfg.Tag})
	if err != nil {
		return nil, err
	}
	d := &Device{ctl: c, cfg: cfg, info: info, fd: -1, ended: make(chan struct{})}
	// A driver clears the flags that it does not know and says nothing.
	if missing := flags &^ d.info.Flags; missing != 0 {
		return nil, d.abandon(&MissingFeatureError{Missing: missing})
	}
	if err := c.SetParams(ctx, d.info.ID, cfg.params()); err != nil {
		return nil, d.abandon(err)
	}
	if err := d.open(ctx, h); err != nil {
		return nil, d.abandon(err)
	}
	return d, nil
}

// open becomes the device's server: a thread and a ring for each queue.
func (d *Device) open(ctx context.Context, h Handler) error {
	id := d.info.ID
	fd, err := openChar(ctx, d.charPath())
	if err != nil {
		return err
	}
	d.fd = fd
	if d.zeroes, err = unix.Mmap(-1, 0, d.cfg.MaxIO, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE); err != nil {
		return fmt.Errorf("ublk: device %d: map %d bytes of zeroes: %w", id, d.cfg.MaxIO, err)
	}
	if d.cfg.DataPath == ZeroCopy {
		if err := d.spare.open(d.info.MaxIO, d.info.Queues); err != nil {
			return fmt.Errorf("ublk: device %d: %w", id, err)
		}
	}
	allowed := uint32(1<<OpRead | 1<<OpFlush)
	if !d.cfg.ReadOnly {
		allowed |= 1<<OpWrite | 1<<OpDiscard | 1<<OpWriteZeroes
	}
	d.handler = h
	var queues []*Queue
	cpus := make([]*CPUSet, d.info.Queues)
	for i := range cpus {
		if !d.cfg.NoAffinity {
			if cpus[i], err = d.ctl.Affinity(ctx, id, i); err != nil {
				return err
			}
		}
		queues = append(queues, &Queue{
			dev: d, index: i, fd: fd, handler: h, maxIO: d.info.MaxIO, allowed: allowed,
			zeroCopy: d.cfg.DataPath == ZeroCopy, requests: make([]Request, d.info.Depth),
		})
		if d.recovering {
			queues[i].handler = new(early)
		}
	}
	d.queues = queues // from here on Stop waits for their threads
	ready, fetch := make(chan error, len(d.queues)), make(chan bool, len(d.queues))
	d.running.Store(int32(len(d.queues)))
	for i, q := range d.queues {
		q.thread = newThread(func() { q.run(cpus[i], ready, fetch) })
	}
	// Every queue answers: a set-up has nothing in it to wait for.
	for range d.queues {
		err = errors.Join(err, <-ready)
	}
	// None fetches before all can. The less time there is between the first and the last the
	// better: a server that dies with a part of its queues fetched leaves them in a state
	// that drivers before 7.3 trip over (see sweep).
	for range d.queues {
		fetch <- err == nil
	}
	if err != nil {
		return err
	}
	for range d.queues {
		err = errors.Join(err, <-ready)
	}
	return err
}

// openChar opens the server's end. devtmpfs has it at once; a /dev that is filled
// by a daemon may take a moment.
func openChar(ctx context.Context, path string) (int, error) {
	for try := 0; ; try++ {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return fd, nil
		case err == unix.EINTR:
			continue
		case err != unix.ENOENT || try == 200:
			return -1, fmt.Errorf("ublk: open %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return -1, fmt.Errorf("ublk: open %s: %w (%w)", path, err, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// abandon removes what there is of a device after err, which it returns together
// with what went wrong in doing so.
func (d *Device) abandon(err error) error {
	// The caller's context may be what failed.
	if stopErr := d.Stop(context.Background()); stopErr != nil {
		return errors.Join(err, stopErr)
	}
	return err
}

// Start makes the block device appear (START_DEV). Requests come to the handler
// before it returns: the kernel looks for partitions. When Start fails the device
// has been removed, as by Stop. After Recover it lets requests flow again
// (END_USER_RECOVERY), and when that fails the device has been left, as by Leave.
func (d *Device) Start(ctx context.Context) error {
	d.mu.Lock()
	stopped, recovering := d.stopped || d.deleted, d.recovering
	var err error
	switch {
	case stopped:
		err = ErrStopped
	case recovering:
		// Given up halfway it might yet succeed, with requests for queues that leave.
		if err = d.ctl.EndRecovery(context.WithoutCancel(ctx), d.info.ID); err == nil {
			d.recovering = false
			d.admit()
		}
	default:
		err = d.ctl.Start(ctx, d.info.ID)
	}
	d.mu.Unlock()
	switch {
	case err == nil, stopped:
	case recovering:
		return errors.Join(err, d.Leave(context.WithoutCancel(ctx)))
	default:
		return d.abandon(err)
	}
	return err
}

// Stop removes the device for good, whoever has it open. In order: STOP_DEV, which
// takes the disk away and waits for the requests in flight; the queues' threads
// reap every tag, unmap and close their rings; /dev/ublkcN is closed; DEL_DEV. The
// number may stay taken until the last user has closed the dead disk.
//
// Stop waits for requests that the handler owns, to its deadline (Control.Timeout a
// step without one). When that passes, the error says what was waited for, the
// queues go on serving, and Stop may be called again. Once it has succeeded, further
// calls return nil. Not to be called on a queue's thread.
func (d *Device) Stop(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.deleted {
		return nil
	}
	id := d.info.ID
	if !d.stopped {
		d.admit() // STOP_DEV waits for what came early, too
		if err := d.ctl.Stop(ctx, id); err != nil && !errors.Is(err, ErrNoDevice) {
			return err
		}
		d.stopped = true
	}
	if len(d.queues) > 0 {
		if err := d.wait(ctx); err != nil {
			return err
		}
	}
	lastErr := d.closeDevice()
	// The waiting form waits for those who still have the dead disk open.
	err := d.ctl.DeleteAsync(ctx, id)
	if errors.Is(err, unix.EOPNOTSUPP) { // before Linux 6.9
		err = d.ctl.Delete(ctx, id)
	}
	if err != nil && !errors.Is(err, ErrNoDevice) {
		return err
	}
	d.deleted = true
	return lastErr
}

// closeDevice closes the server's end, when the queues have ended. It returns what
// went wrong since they began to.
func (d *Device) closeDevice() error {
	if d.zeroes != nil {
		d.keepError(unix.Munmap(d.zeroes))
		d.zeroes = nil
	}
	d.keepError(d.spare.close())
	if d.fd >= 0 {
		d.keepError(unix.Close(d.fd))
		d.fd = -1
	}
	d.errMu.Lock()
	defer d.errMu.Unlock()
	return errors.Join(d.lastErrs...)
}

// wait waits for the queues' threads.
func (d *Device) wait(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.ctl.Timeout)
		defer cancel()
	}
	select {
	case <-d.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("ublk: device %d: %d queues have not got every tag back: %w", d.info.ID, d.running.Load(), ctx.Err())
	}
}

// queueEnded is called by each queue's thread when it has given everything back.
func (d *Device) queueEnded() {
	if d.running.Add(-1) == 0 {
		close(d.ended)
	}
}

// keepError keeps an error of the teardown, which goes on, for Stop to return.
func (d *Device) keepError(err error) {
	if err == nil {
		return
	}
	d.errMu.Lock()
	d.lastErrs = append(d.lastErrs, fmt.Errorf("ublk: device %d: teardown: %w", d.info.ID, err))
	d.errMu.Unlock()
}

// Done is closed when the queues have ended: after Stop, or because someone else
// stopped the device. In the latter case Stop is still to be called.
func (d *Device) Done() <-chan struct{} { return d.ended }

// ID is the device's number.
func (d *Device) ID() int { return d.info.ID }

// Path is the block device, /dev/ublkbN. It exists from Start to Stop.
func (d *Device) Path() string { return fmt.Sprintf("/dev/ublkb%d", d.info.ID) }

func (d *Device) charPath() string { return fmt.Sprintf("/dev/ublkc%d", d.info.ID) }

// Info is what the driver granted in ADD_DEV.
func (d *Device) Info() Info { return d.info }

// Config is the configuration with defaults filled in and the data path chosen.
func (d *Device) Config() Config { return d.cfg }

// Queues are the device's queues.
func (d *Device) Queues() []*Queue { return d.queues }

// OnQueues runs fn on every queue's thread, on different queues at the same time,
// and returns when all have run it. As a queue's thread does one thing at a time,
// everything that Begin and Transferred had begun to do before is done then: a
// grace period. fn must not block. Not to be called on a queue's thread.
// ErrStopped when a queue has ended; fn did not run there.
func (d *Device) OnQueues(fn func(q *Queue)) error {
	done := make(chan struct{}, len(d.queues))
	posted := 0
	var err error
	for _, q := range d.queues {
		if e := q.Post(func() { fn(q); done <- struct{}{} }); e != nil {
			err = e
			continue
		}
		posted++
	}
	for range posted {
		<-done
	}
	return err
}

// UpdateSize changes the size, in bytes, a multiple of the logical block size.
// FeatureUpdateSize.
func (d *Device) UpdateSize(ctx context.Context, size int64) error {
	if size <= 0 || size%int64(d.cfg.LogicalBlock) != 0 {
		return &ConfigError{"Size", fmt.Sprintf("%d: a positive multiple of LogicalBlock (%d)", size, d.cfg.LogicalBlock)}
	}
	return d.ctl.UpdateSize(ctx, d.info.ID, size)
}

// Stats counts since Create.
type Stats struct {
	Reads, Writes, Flushes, Discards, WriteZeroes uint64 // requests fetched
	Wakeups                                       uint64 // of sleeping queues by other goroutines
	Bounces                                       uint64 // zero-copy transfers that went by the spare buffer
}

// Stats adds the queues' counters up. From any goroutine.
func (d *Device) Stats() Stats {
	var s Stats
	for _, q := range d.queues {
		r := &q.reported
		s.Reads += r.ops[OpRead].Load()
		s.Writes += r.ops[OpWrite].Load()
		s.Flushes += r.ops[OpFlush].Load()
		s.Discards += r.ops[OpDiscard].Load()
		s.WriteZeroes += r.ops[OpWriteZeroes].Load()
		s.Wakeups += r.wakeups.Load()
		s.Bounces += r.bounces.Load()
	}
	return s
}
