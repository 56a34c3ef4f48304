// Package lock has locks whose wait can be ended from outside.
package lock

import (
	"errors"
	"slices"
	"sync"
)

// ErrOver is returned by Lock when the wait was ended.
var ErrOver = errors.New("stack is being succeeded by another")

// Mutex is a lock whose wait can be ended. Who holds it may hang in dead
// storage, and who waits for it must be able to begin anew elsewhere. The zero
// value is unlocked.
type Mutex struct {
	mu   sync.Mutex // for an instant
	held bool
	wait []chan struct{} // to the first of them it is handed
}

// Lock waits until the lock is had, or is ErrOver when over is closed
// before; a nil over never is.
func (m *Mutex) Lock(over <-chan struct{}) error {
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
		m.Unlock()
	}
	return ErrOver
}

// Unlock hands the lock to whoever waits longest.
func (m *Mutex) Unlock() {
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

// ByNumber are mutexes by number, made when first wanted and dropped with
// the last user. Whoever takes several takes them in rising order.
type ByNumber struct {
	mu    sync.Mutex
	held  map[uint64]*clusterLock
	spare []*clusterLock // that nobody has, to be used again
}

// mostSpare is how many are kept: as many as are in use at once by many requests.
const mostSpare = 64

type clusterLock struct {
	Mutex
	users int
}

// Lock takes cluster i's lock; see mutex.lock.
func (c *ByNumber) Lock(i uint64, over <-chan struct{}) error {
	c.mu.Lock()
	l := c.held[i]
	if l == nil {
		if c.held == nil {
			c.held = make(map[uint64]*clusterLock)
		}
		if n := len(c.spare); n > 0 {
			l, c.spare = c.spare[n-1], c.spare[:n-1]
		} else {
			l = new(clusterLock)
		}
		c.held[i] = l
	}
	l.users++
	c.mu.Unlock()
	err := l.Lock(over)
	if err != nil {
		c.drop(i)
	}
	return err
}

// Unlock gives lock i back.
func (c *ByNumber) Unlock(i uint64) {
	l, last := c.drop(i)
	l.Unlock()
	if last {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.spare) < mostSpare {
			c.spare = append(c.spare, l)
		}
	}
}

// drop counts one user of a cluster's lock less. After the last one nobody else has it.
func (c *ByNumber) drop(i uint64) (l *clusterLock, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l = c.held[i]
	if l.users--; l.users == 0 {
		delete(c.held, i)
	}
	return l, l.users == 0
}
