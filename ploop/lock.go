package ploop

import (
	"errors"
	"slices"
	"sync"
)

// errOver says that a wait was ended.
var errOver = errors.New("stack is being succeeded by another")

// mutex is a lock whose wait can be ended. Who holds it may hang in dead
// storage, and who waits for it must be able to begin anew elsewhere. The zero
// value is unlocked.
type mutex struct {
	mu   sync.Mutex // for an instant
	held bool
	wait []chan struct{} // to the first of them it is handed
}

// lock waits until the lock is had, or is ErrOver when over is closed
// before; a nil over never is.
func (m *mutex) lock(over <-chan struct{}) error {
	m.mu.Lock()
	if !m.held {
		m.held = true
		m.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	m.wait = append(m.wait, turn)
	m.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-over:
	}
	m.mu.Lock()
	i := slices.Index(m.wait, turn)
	if i >= 0 {
		m.wait = slices.Delete(m.wait, i, i+1)
	}
	m.mu.Unlock()
	if i < 0 { // it was handed over at this moment
		m.unlock()
	}
	return errOver
}

func (m *mutex) unlock() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.wait) == 0 {
		m.held = false
		return
	}
	turn := m.wait[0]
	m.wait = slices.Delete(m.wait, 0, 1)
	close(turn)
}

// clusterLocks are mutexes by number, made when first wanted and dropped with
// the last user. Whoever takes several takes them in rising order.
type clusterLocks struct {
	mu   sync.Mutex
	held map[uint64]*clusterLock
}

type clusterLock struct {
	mutex
	users int
}

// lock takes cluster i's lock; see mutex.lock.
func (c *clusterLocks) lock(i uint64, over <-chan struct{}) error {
	c.mu.Lock()
	l := c.held[i]
	if l == nil {
		if c.held == nil {
			c.held = make(map[uint64]*clusterLock)
		}
		l = new(clusterLock)
		c.held[i] = l
	}
	l.users++
	c.mu.Unlock()
	err := l.lock(over)
	if err != nil {
		c.drop(i)
	}
	return err
}

func (c *clusterLocks) unlock(i uint64) { c.drop(i).unlock() }

// drop counts one user of a cluster's lock less.
func (c *clusterLocks) drop(i uint64) *clusterLock {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.held[i]
	if l.users--; l.users == 0 {
		delete(c.held, i)
	}
	return l
}
