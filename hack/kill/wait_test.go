package kill

import (
	"fmt"
	"testing"
	"time"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wait calls f until it returns nil, or returns its last error. Two thirds of the time it leaves to those who
// are waited for.
func wait(timeout time.Duration, f func() error) error {
	for deadline := time.Now().Add(timeout); ; {
		began := time.Now()
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", timeout, err)
		}
		time.Sleep(max(10*time.Millisecond, 2*time.Since(began)))
	}
}

// round is for logs.
func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
