package ublk

import (
	"context"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// The kernel's time-out of requests is set when Start returns, however long the shell takes, so
// that no request of a user's meets the frozen queue; and with a request in flight it stays as it is, and
// other requests are served.
func TestHurry(t *testing.T) {
	c := control(t)
	if have, err := c.Features(t.Context()); err != nil || have.Has(FeatureQuiesce) {
		t.Skipf("only drivers without QUIESCE are hurried (%v)", err)
	}
	const size = 1 << 20
	for _, held := range []bool{false, true} {
		name := "idle"
		if held {
			name = "held"
		}
		t.Run(name, func(t *testing.T) {
			c := control(t)
			var armed atomic.Bool
			kept := make(chan *Request, 1)
			ram := newRAM(t, size, false)
			h := funcHandler{begin: func(r *Request) {
				if r.Op() == OpWrite && armed.CompareAndSwap(true, false) {
					kept <- r
					return
				}
				ram.Begin(r)
			}}
			d, err := c.Create(t.Context(), Config{ID: -1, Size: size, Queues: 1, DataPath: Copy, Recovery: RecoverReissue}, h)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := d.Stop(context.Background()); err != nil {
					t.Error(err)
				}
			})
			wrote := make(chan error, 1)
			c.Run = func(ctx context.Context, name string, args ...string) error {
				if held {
					armed.Store(true)
					f, b := openDirect(t, d, os.O_RDWR), aligned(t, 4096)
					go func() { _, err := f.WriteAt(b, 0); wrote <- err }()
					r := <-kept
					t.Cleanup(func() { r.Complete(0); <-wrote })
				} else {
					time.Sleep(300 * time.Millisecond) // a slow machine
				}
				return runHere(ctx, name, args...)
			}
			if err := d.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			f, b := openDirect(t, d, os.O_RDWR), aligned(t, 4096)
			served := make(chan error, 1)
			go func() { _, err := f.WriteAt(b, 8192); served <- err }()
			select {
			case err := <-served:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("another request isn't served")
			}
			if is := sysAttr(t, d, "queue/io_timeout"); (is == soon) == held {
				t.Errorf("the time-out is %s ms", is)
			}
		})
	}
}
