package stack

// flushing is a flush by a caller that syncs for itself, as a queue's ring does.
type flushing struct {
	FlushWaiter
	s     *Stack
	woken chan flushEnd
	state FlushState
	line  bool // it had to wait
}

type flushEnd struct {
	state FlushState
	err   error
}

func beginFlush(s *Stack) *flushing {
	f := &flushing{s: s, woken: make(chan flushEnd, 1)}
	f.Wake = func(state FlushState, err error) { f.woken <- flushEnd{state, err} }
	f.state = s.FlushBegin(&f.FlushWaiter)
	f.line = f.state == FlushWait
	return f
}

// wait returns when it leads or has ended.
func (f *flushing) wait() error {
	if f.line {
		f.line = false
		e := <-f.woken
		f.state = e.state
		return e.err
	}
	return nil
}

// end ends a flush that leads.
func (f *flushing) end(err error) error {
	f.state, err = f.s.FlushEnd(&f.FlushWaiter, err)
	return err
}

func (f *flushing) waits() bool { return f.line && len(f.woken) == 0 }

// ringFlush makes everything durable as a device does.
func ringFlush(s *Stack) error {
	f := beginFlush(s)
	err := f.wait()
	if f.state == FlushLead {
		err = f.end(s.top.File.Sync())
	}
	switch f.state {
	case FlushMore:
		return s.Flush()
	case FlushAgain:
		return ErrSuperseded
	}
	return s.top.IOError("sync", -1, err)
}
