package device

import (
	"sync"
	"sync/atomic"
	"time"
)

// inquiry asks somebody who may not answer, one question at a time: who asks while another's
// question is out waits for that one's answer, and whoever doesn't answer costs the first who
// asks a wait, and nobody more than that.
type inquiry[T any] struct {
	mu    sync.Mutex
	asked time.Time
	done  chan struct{} // closed by the answer; nil: nothing was ever asked
	last  atomic.Pointer[T]
}

// ask has run do the asking, somewhere else, unless a question is out, or was sent less than
// fresh ago. It gives the channel that the answer closes, and when the question was sent; nil:
// run's error says that there will be no answer.
func (i *inquiry[T]) ask(run func(func()) error, answer func() *T, fresh time.Duration) (<-chan struct{}, time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.done != nil {
		select {
		case <-i.done:
			if time.Since(i.asked) < fresh {
				return i.done, i.asked
			}
		default:
			return i.done, i.asked
		}
	}
	done := make(chan struct{})
	if run(func() { i.last.Store(answer()); close(done) }) != nil {
		return nil, time.Time{}
	}
	i.done, i.asked = done, time.Now()
	return done, i.asked
}

// await waits for an answer until limit after the question was sent; false: it has not come.
func await(done <-chan struct{}, sent time.Time, limit time.Duration) bool {
	t := time.NewTimer(time.Until(sent.Add(limit)))
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
	}
	select {
	case <-done:
		return true
	default:
		return false
	}
}
