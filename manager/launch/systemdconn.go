package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// noUnit is systemd's error for a unit that isn't loaded: nobody wants it, and it doesn't run.
const noUnit = "org.freedesktop.systemd1.NoSuchUnit"

// is says whether an error is one of D-Bus.
func is(err error, name string) bool {
	var e godbus.Error
	return errors.As(err, &e) && e.Name == name
}

// call asks systemd something. systemd closes connections when it executes itself again, so a
// connection that was lost is made again, once; nothing that is asked does harm by being asked
// twice.
func (s *Systemd) call(ctx context.Context, ask func(manager) error) error {
	for again := false; ; again = true {
		m, err := s.connect(ctx)
		if err != nil {
			return err
		}
		err = ask(m)
		var e godbus.Error // an answer
		if err == nil || errors.As(err, &e) || ctx.Err() != nil || m.Connected() || again {
			return err
		}
	}
}

func (s *Systemd) connect(ctx context.Context) (manager, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if s.conn != nil && !s.conn.Connected() {
		s.conn.Close()
		s.conn = nil
	}
	if s.conn == nil {
		m, err := dial(ctx, s.dial)
		if err != nil {
			return nil, fmt.Errorf("connecting to systemd: %w", err)
		}
		s.conn = m
	}
	return s.conn, nil
}

// dial makes a connection for as long as ctx lasts; the connection lasts longer.
func dial(ctx context.Context, do func(context.Context) (manager, error)) (manager, error) {
	type made struct {
		manager
		error
	}
	done := make(chan made, 1)
	go func() {
		m, err := do(context.Background())
		done <- made{m, err}
	}()
	select {
	case m := <-done:
		return m.manager, m.error
	case <-ctx.Done():
		go func() {
			if m := <-done; m.error == nil {
				m.manager.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// reloadMax is how long systemd may take to read its units.
const reloadMax = time.Minute

// reloads has systemd read its units, once for all who ask while it does so for others.
type reloads struct {
	do func(context.Context) error

	mu      sync.Mutex
	running bool
	next    *reload // to be done after the one that runs, for who asks now
}

type reload struct {
	done chan struct{}
	err  error
}

// wait returns when systemd has read its units as they are now, or ctx ends.
func (r *reloads) wait(ctx context.Context) error {
	r.mu.Lock()
	if r.next == nil {
		r.next = &reload{done: make(chan struct{})}
	}
	mine := r.next
	if !r.running {
		r.running = true
		go r.run()
	}
	r.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return fmt.Errorf("having systemd read its units: %w", ctx.Err())
	}
}

// run does what is to be done, until nothing is left.
func (r *reloads) run() {
	for {
		r.mu.Lock()
		now := r.next
		r.next = nil
		r.running = now != nil
		r.mu.Unlock()
		if now == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), reloadMax)
		if err := r.do(ctx); err != nil {
			now.err = fmt.Errorf("having systemd read its units: %w", err)
		}
		cancel()
		close(now.done)
	}
}

// syncDir has what was made in a directory outlive a power failure.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
