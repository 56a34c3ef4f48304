package stack

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/ploop/internal/format"
)

// TestBoundedLock has an operation on a lock hang and the next ones be tried for ever: they
// don't become many, and work when the first has come back.
func TestBoundedLock(t *testing.T) {
	defer func(was time.Duration) { lockTime = was }(lockTime)
	lockTime = time.Millisecond
	d := &delta{Delta: &format.Delta{}, unlocking: make(chan struct{}, 1)}
	hang := make(chan struct{})
	before := runtime.NumGoroutine()
	for range 50 {
		if err := d.bounded("lock", func() error { <-hang; return nil }); !errors.Is(err, unix.ETIMEDOUT) {
			t.Fatal(err)
		}
	}
	if n := runtime.NumGoroutine() - before; n > 1 {
		t.Errorf("50 operations on a lock that hangs are %d goroutines", n)
	}
	close(hang)
	lockTime = time.Minute
	if err := d.bounded("lock", func() error { return nil }); err != nil {
		t.Error(err)
	}
}
