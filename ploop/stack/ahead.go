package stack

import "time"

// ahead grows the top's file before its room is used up, and makes that durable, off the way of the
// requests. One growth is under way at most.
type ahead struct {
	// Under space.mu:
	done   chan struct{} // closed when the one under way has ended; nil: there is none
	failed uint64        // what space.have was when one failed: to be tried again when somebody has grown it
}

// see begins to grow when half of a step is left, if the disk may want more. The caller holds
// space.mu.
func (a *ahead) see(s *Stack) {
	p := &s.space
	left := p.have - p.next
	if a.done != nil || a.failed == p.have || left > s.stepOf()/2 || s.opts.noAhead {
		return
	}
	// What is left to want is little at the end, or the clusters that are being allocated.
	if !p.zeroes.reserved.Load() || uint64(s.allocated.Load())+left+s.stepOf()/8 >= s.clusters {
		return
	}
	a.done = make(chan struct{})
	token := s.calls.begin() // it may write to the file
	go func() {
		err := a.grow(s)
		s.calls.end(token)
		p.mu.Lock()
		defer p.mu.Unlock()
		if err != nil {
			a.failed = p.have
		}
		close(a.done)
		a.done = nil
	}()
}

func (a *ahead) grow(s *Stack) error {
	p := &s.space
	if err := p.growing.Lock(s.life.over()); err != nil {
		return err
	}
	var err error
	if p.wanted(s) > 0 {
		err = p.grow(s)
	}
	p.growing.Unlock()
	if err != nil || !p.zeroes.gains() {
		return err
	}
	return s.sync()
}

// wait waits for the one under way, at most for limit; 0: without end.
func (a *ahead) wait(s *Stack, limit time.Duration) {
	s.space.mu.Lock()
	done := a.done
	s.space.mu.Unlock()
	if done == nil {
		return
	}
	var expired <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		expired = t.C
	}
	select {
	case <-done:
	case <-expired:
	}
}
