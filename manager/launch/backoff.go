package launch

import "time"

// How long a process that ended is missing before the next is started.
const (
	firstWait = 20 * time.Millisecond
	longest   = 2 * time.Second
	settled   = 10 * time.Second // one that ran for so long has not failed at its start
	brief     = time.Second      // one that ran for less can't have served anything
)

// A backoff counts processes of one name that failed.
type backoff struct {
	next  time.Duration // the next wait; 0: the first
	again bool          // the last one wanted its successor at once, and was brief
}

// failed is the wait after a process that failed, and had run for some time.
func (b *backoff) failed(ran time.Duration) time.Duration {
	if b.next == 0 || ran >= settled {
		b.next = firstWait
	}
	wait := b.next
	b.next = min(2*wait, longest)
	b.again = false
	return wait
}

// left is the wait after one that has left its things in order: none, if it isn't one that does
// nothing else.
func (b *backoff) left(ran time.Duration) time.Duration {
	if ran < brief && b.again {
		wait := b.failed(ran)
		b.again = true
		return wait
	}
	b.again = ran < brief
	return 0
}
