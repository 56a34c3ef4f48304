package ublk

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestStopUnderLoad(t *testing.T) {
	eachPath(t, func(t *testing.T, c *Control, p DataPath) {
		const size = 16 << 20
		f := backing(t, size, 0)
		file := &fileHandler{f}
		var slow atomic.Uint64
		h := funcHandler{transferred: file.Transferred, begin: func(r *Request) {
			if slow.Add(1)%8 == 0 && r.User == 0 { // some by way of goroutines
				r.User = 1
				go r.Requeue()
				return
			}
			file.Begin(r)
		}}
		threads := threadCount(t)
		var total uint64
		rounds := 100
		if testing.Short() {
			rounds = 20
		}
		for round := range rounds {
			d, err := c.Create(t.Context(), Config{ID: -1, Size: size, Queues: 2, Files: 1, DataPath: p, VolatileCache: true, NoPartScan: round%2 == 0}, h)
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			if err := d.SetFile(0, int(f.Fd())); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			if err := d.Start(t.Context()); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					hammer(d.Path(), i)
				}()
			}
			for begin := time.Now(); d.Stats().Reads+d.Stats().Writes < 50 && time.Since(begin) < 10*time.Second; {
				time.Sleep(time.Millisecond)
			}
			if err := d.Stop(t.Context()); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			wg.Wait()
			s := d.Stats()
			if s.Reads+s.Writes < 50 {
				t.Fatalf("round %d: there was no load: %+v", round, s)
			}
			total += s.Reads + s.Writes
			// The last user's close may still be on its way through the kernel.
			for begin := time.Now(); ; time.Sleep(time.Millisecond) {
				if _, err := c.GetInfo(t.Context(), d.ID()); errors.Is(err, ErrNoDevice) {
					break
				} else if time.Since(begin) > 10*time.Second {
					t.Fatalf("round %d: the device is still there: %v", round, err)
				}
			}
			if _, err := os.Stat(d.Path()); err == nil {
				t.Fatalf("round %d: %s is still there", round, d.Path())
			}
		}
		t.Logf("%d requests in %d lives", total, rounds)
		if now := threadCount(t); now > threads+16 {
			t.Errorf("%d threads before, %d after: queues' threads are left", threads, now)
		}
	})
}

// hammer reads and writes until the device goes away.
func hammer(path string, seed int) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	buf, err := mapMemory(64<<10, 0)
	if err != nil {
		return
	}
	defer unix.Munmap(buf)
	for i := seed; ; i++ {
		off := int64(i*37%256) << 16
		if i%3 == 0 {
			_, err = unix.Pwrite(fd, buf, off)
		} else {
			_, err = unix.Pread(fd, buf[:4096], off)
		}
		if err != nil && err != unix.EINTR {
			return
		}
	}
}

func threadCount(t *testing.T) int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "Threads:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Stop ends by its deadline while a request is held, and by itself when it is released.
func TestStopWaitsForHeldRequests(t *testing.T) {
	eachPath(t, func(t *testing.T, c *Control, p DataPath) {
		const size = 1 << 20
		var armed atomic.Bool
		held := make(chan *Request, 1)
		ram := newRAM(t, size, false)
		h := funcHandler{begin: func(r *Request) {
			if r.Op() == OpWrite && armed.CompareAndSwap(true, false) {
				held <- r
				return
			}
			ram.Begin(r)
		}}
		d, err := c.Create(t.Context(), Config{ID: -1, Size: size, DataPath: p}, h)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		armed.Store(true)
		w := openDirect(t, d, unix.O_RDWR)
		buf := aligned(t, 4096)
		wrote := make(chan error)
		go func() {
			_, err := w.Write(buf)
			wrote <- err
		}()
		r := <-held
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		begin := time.Now()
		err = d.Stop(ctx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Stop with a held request: %v", err)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Fatalf("Stop took %v", took)
		}
		t.Log(err)
		// The control plane goes on although a command of it hangs.
		if _, err := c.GetInfo(t.Context(), d.ID()); err != nil {
			t.Fatal(err)
		}
		if err := r.ReadPayload(buf, 0); err != nil {
			t.Fatal(err)
		}
		r.Complete(0)
		if err := <-wrote; err != nil {
			t.Fatalf("the held write: %v", err)
		}
		w.Close()
		for range 2 {
			if err := d.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-d.Done():
		default:
			t.Fatal("stopped and not done")
		}
		if err := d.SetFile(0, -1); err == nil {
			t.Fatal("SetFile after Stop")
		}
		if err := d.Start(t.Context()); !errors.Is(err, ErrStopped) {
			t.Fatalf("Start after Stop: %v", err)
		}
	})
}

func TestTryStop(t *testing.T) {
	c := control(t)
	need(t, c, FeatureSafeStop)
	d := serve(t, c, Config{Size: 1 << 20, NoPartScan: true}, newRAM(t, 1<<20, false))
	f := openDirect(t, d, unix.O_RDONLY)
	if err := c.TryStop(t.Context(), d.ID()); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("in use: %v", err)
	}
	f.Close()
	if err := c.TryStop(t.Context(), d.ID()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Done():
	case <-time.After(time.Minute):
		t.Fatal("the queues go on after TRY_STOP_DEV")
	}
}

// Someone else's STOP_DEV ends the queues, which the owner sees.
func TestStoppedByOthers(t *testing.T) {
	c := control(t)
	d := serve(t, c, Config{Size: 1 << 20, Queues: 2}, newRAM(t, 1<<20, false))
	other := control(t)
	if err := other.Stop(t.Context(), d.ID()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Done():
	case <-time.After(time.Minute):
		t.Fatal("the queues go on after STOP_DEV")
	}
}
