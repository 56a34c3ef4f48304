package control

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"holdfast/api"
)

// userScans shares the search for users of devices: each is a walk over all processes, and a
// hundred devices that are asked about at once need no hundred walks.
type userScans struct {
	limit   time.Duration // how long who asks waits
	mu      sync.Mutex
	next    *userScan // has not begun, so who asks now can have its result
	running bool
}

type userScan struct {
	disks map[int]string // number → path
	done  chan struct{}
	users map[int][]api.User
	err   error
}

// scanLimit is within the time that a client waits for an answer to a question.
const scanLimit = 20 * time.Second

// findUsers says who holds disks, and perhaps others. The result is shared: it is not to be
// changed. A search that hangs with what it reads is an error, and keeps nobody.
func (d *Daemon) findUsers(disks map[int]string) (map[int][]api.User, error) {
	if len(disks) == 0 {
		return nil, nil
	}
	s := &d.scans
	s.mu.Lock()
	if s.next == nil {
		s.next = &userScan{disks: map[int]string{}, done: make(chan struct{})}
	}
	scan := s.next
	maps.Copy(scan.disks, disks)
	if !s.running {
		s.running = true
		go d.scanUsers()
	}
	s.mu.Unlock()
	t := time.NewTimer(s.limit)
	defer t.Stop()
	select {
	case <-scan.done:
		return scan.users, scan.err
	case <-t.C:
		return nil, fmt.Errorf("the search for users has not ended within %v", s.limit)
	}
}

// scanUsers makes scans as long as somebody waits for one.
func (d *Daemon) scanUsers() {
	s := &d.scans
	for {
		s.mu.Lock()
		scan := s.next
		s.next, s.running = nil, scan != nil
		s.mu.Unlock()
		if scan == nil {
			return
		}
		scan.users, scan.err = d.kernel.users(scan.disks)
		close(scan.done)
	}
}

// transient tells the processes that look at every new block device by
// themselves and let go of it within moments.
func transient(users []api.User) bool {
	for _, u := range users {
		if u.Kind != "process" {
			return false
		}
		switch u.Name {
		case "(udev-worker)", "systemd-udevd", "udevd", "blkid":
		default:
			return false
		}
	}
	return true
}

// usersOf waits up to settle for transient users to go, and says who is left.
func (d *Daemon) usersOf(ctx context.Context, dev live) ([]api.User, error) {
	deadline := time.Now().Add(d.settle)
	for {
		all, err := d.findUsers(map[int]string{dev.ID(): dev.Path()})
		users := all[dev.ID()]
		if err != nil || len(users) == 0 || !transient(users) || time.Now().After(deadline) {
			return users, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return users, fmt.Errorf("gave up waiting: %w", ctx.Err())
		}
	}
}
