package ploop

import "sync"

// clusterLocks are mutexes by number, made when first wanted and dropped with
// the last user. Whoever takes several takes them in rising order.
type clusterLocks struct {
	mu   sync.Mutex
	held map[uint64]*clusterLock
}

type clusterLock struct {
	sync.Mutex
	users int
}

func (c *clusterLocks) lock(i uint64) {
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
	l.Lock()
}

func (c *clusterLocks) unlock(i uint64) {
	c.mu.Lock()
	l := c.held[i]
	if l.users--; l.users == 0 {
		delete(c.held, i)
	}
	c.mu.Unlock()
	l.Unlock()
}
