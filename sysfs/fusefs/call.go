package fusefs

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/sysfs"
)

const (
	// grace is how long a call goes on that was interrupted. A signal needn't
	// mean that its process is to die, and most calls take no time at all.
	grace = time.Second
	// maxLeft is how many calls of one attribute can be left hanging.
	maxLeft = 16
)

// tree is what all nodes share.
type tree struct {
	root    *sysfs.Dir
	log     func(string)
	made    time.Time
	closing chan struct{} // closed: nobody waits for a call any more

	mu   sync.Mutex
	left map[string]int // calls left hanging, by path
}

func newTree(root *sysfs.Dir, log func(string)) *tree {
	return &tree{root: root, log: log, made: time.Now(), closing: make(chan struct{}), left: map[string]int{}}
}

type result struct {
	text string
	err  error
}

// call runs an attribute's function for as long as its caller waits.
func (t *tree) call(ctx context.Context, path string, f func() (string, error)) (string, error) {
	t.mu.Lock()
	tooMany := t.left[path] >= maxLeft
	t.mu.Unlock()
	if tooMany {
		return "", unix.EBUSY
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			// The face of a server must not kill it.
			if p := recover(); p != nil {
				t.log(fmt.Sprintf("%s: panic: %v\n%s", path, p, debug.Stack()))
				r = result{err: unix.EIO}
			}
			done <- r
		}()
		r.text, r.err = f()
	}()
	select {
	case r := <-done:
		return r.text, r.err
	case <-ctx.Done():
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case r := <-done:
			return r.text, r.err
		case <-timer.C:
		case <-t.closing:
		}
	case <-t.closing:
	}
	t.mu.Lock()
	t.left[path]++
	t.mu.Unlock()
	go func() {
		<-done
		t.mu.Lock()
		if t.left[path]--; t.left[path] == 0 {
			delete(t.left, path)
		}
		t.mu.Unlock()
	}()
	return "", unix.EINTR
}
