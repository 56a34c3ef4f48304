package users

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"holdfast/api"
)

// A Search shares one walk over all processes among those who ask at the same time: a hundred
// devices that are asked about at once need no hundred walks.
type Search struct {
	// Find does the search; nil: Find("/proc", "/sys", disks).
	Find func(disks map[int]string) (map[int][]api.User, error)
	// Limit is how long who asks waits; 0: 20 s, which is within the time that a client waits
	// for an answer.
	Limit time.Duration

	mu      sync.Mutex
	next    *walk // has not begun, so who asks now can have its result
	running bool
}

type walk struct {
	disks map[int]string // number → path
	done  chan struct{}
	users map[int][]api.User
	err   error
}

const defaultLimit = 20 * time.Second

// Of says who holds disks, given as number → path, and perhaps others. The result is shared: it
// is not to be changed. A search that hangs with what it reads is an error, and keeps nobody.
func (s *Search) Of(disks map[int]string) (map[int][]api.User, error) {
	if len(disks) == 0 {
		return nil, nil
	}
	limit := s.Limit
	if limit == 0 {
		limit = defaultLimit
	}
	s.mu.Lock()
	if s.next == nil {
		s.next = &walk{disks: map[int]string{}, done: make(chan struct{})}
	}
	w := s.next
	maps.Copy(w.disks, disks)
	if !s.running {
		s.running = true
		go s.run()
	}
	s.mu.Unlock()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-w.done:
		return w.users, w.err
	case <-t.C:
		return nil, fmt.Errorf("the search for users has not ended within %v", limit)
	}
}

// Waiting is how many disks the next walk is for, while one is under way.
func (s *Search) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		return 0
	}
	return len(s.next.disks)
}

// run walks as long as somebody waits for a result.
func (s *Search) run() {
	for {
		s.mu.Lock()
		w := s.next
		s.next, s.running = nil, w != nil
		s.mu.Unlock()
		if w == nil {
			return
		}
		if s.Find != nil {
			w.users, w.err = s.Find(w.disks)
		} else {
			w.users, w.err = Find("/proc", "/sys", w.disks)
		}
		close(w.done)
	}
}

// Transient says of users that all of them are processes which look at every new block device by
// themselves, and close it within moments.
func Transient(users []api.User) bool {
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
