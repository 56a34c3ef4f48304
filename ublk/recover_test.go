package ublk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// keeper is a server's handler that keeps some requests, and more of them when it is
// about to leave.
type keeper struct {
	*ramHandler
	leaving atomic.Bool
	kept    atomic.Int64
}

var _ Handler = (*keeper)(nil)

func (h *keeper) Begin(r *Request) {
	if h.leaving.Load() && rand.IntN(2) == 0 {
		h.kept.Add(1)
		return
	}
	h.ramHandler.Begin(r)
}

// A device's users notice nothing of its servers' coming and going, and what a server
// kept is done by the next.
func TestLeaveAndRecover(t *testing.T) {
	eachPath(t, func(t *testing.T, c *Control, p DataPath) {
		const size = 4 << 20
		rounds := 20
		if testing.Short() {
			rounds = 6
		}
		cfg := Config{ID: -1, Size: size, Queues: 2, Depth: 8, DataPath: p, Recovery: RecoverReissue, VolatileCache: true}
		ram := newRAM(t, size, false)
		h := &keeper{ramHandler: ram}
		d, err := c.Create(t.Context(), cfg, h)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer func() { d.Stop(t.Context()) }()
		shortenTimeout(t, c, d)
		if d.Info().Flags.Has(FeatureQuiesce) {
			t.Error("the device takes QUIESCE_DEV, under which drivers before 7.3 corrupt memory")
		}
		if !testing.Short() {
			slowCommits(t)
		}

		stop := make(chan struct{})
		var wg sync.WaitGroup
		var done atomic.Int64
		for i := range 24 { // more than there are tags
			wg.Go(func() {
				f, err := os.OpenFile(d.Path(), os.O_RDWR|unix.O_DIRECT, 0)
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				b, got := aligned(t, 4096), aligned(t, 4096)
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					copy(b, bytes.Repeat([]byte(fmt.Sprintf("%03d %08d    ", i, n)), 256))
					if _, err := f.WriteAt(b, int64(i)*4096); err != nil {
						t.Errorf("write: %v", err)
						return
					}
					if _, err := f.ReadAt(got, int64(i)*4096); err != nil || !bytes.Equal(got, b) {
						t.Errorf("read: %v, right: %t", err, bytes.Equal(got, b))
						return
					}
					done.Add(1)
				}
			})
		}
		var longest time.Duration
		for round := range rounds {
			for was := done.Load(); done.Load() < was+50 && !t.Failed(); {
				time.Sleep(time.Millisecond)
			}
			h.leaving.Store(true)
			begin := time.Now()
			if round%3 == 0 { // every tag is kept
				time.Sleep(20 * time.Millisecond)
			}
			if err := d.Leave(t.Context()); err != nil {
				t.Fatalf("round %d: leave: %v", round, err)
			}
			h = &keeper{ramHandler: ram}
			next, err := c.Recover(t.Context(), d.ID(), cfg, h)
			if err != nil {
				t.Fatalf("round %d: recover: %v", round, err)
			}
			d = next
			if err := d.Start(t.Context()); err != nil {
				t.Fatalf("round %d: end of the recovery: %v", round, err)
			}
			longest = max(longest, time.Since(begin))
		}
		for was := done.Load(); done.Load() < was+50 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		close(stop)
		wg.Wait()
		t.Logf("%d requests over %d servers, the longest pause %v", 2*done.Load(), rounds+1, longest)
	})
}

// slowCommits makes the time long between the moment when a COMMIT_AND_FETCH gives its
// command to the driver and the one when io_uring learns that it can be cancelled: by probes, with
// stack traces for no use but their time, at the function that it learns it by. With it a
// Leave by QUIESCE_DEV on Linux 7.2 ended in the kernel's fault after some 90 rounds once, and
// some 170 another time: -test.count 12 or more is wanted to tell.
func slowCommits(t *testing.T) {
	if os.Getenv("HOLDFAST_VM") == "" {
		return // not on a machine that somebody uses
	}
	const tracing = "/sys/kernel/tracing/"
	if err := unix.Mount("tracefs", tracing, "tracefs", 0, ""); err != nil && err != unix.EBUSY {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		f, err := os.OpenFile(tracing+name, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_, err = f.WriteString(text)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var remove []string
	for i := range 8 {
		name := fmt.Sprintf("holdfast%d", i)
		write("kprobe_events", "p:"+name+" io_uring_cmd_mark_cancelable\n")
		remove = append(remove, "-:"+name+"\n")
	}
	write("options/stacktrace", "1")
	write("events/kprobes/enable", "1")
	t.Cleanup(func() {
		write("events/kprobes/enable", "0")
		write("options/stacktrace", "0")
		for _, r := range remove {
			write("kprobe_events", r)
		}
	})
}

// A recovery that was cut off is begun anew.
func TestRecoveryCutOff(t *testing.T) {
	c := control(t)
	for _, queues := range []int{1, 2} {
		cfg := Config{ID: -1, Size: 1 << 20, Queues: queues, Depth: 4, DataPath: Copy, Recovery: RecoverReissue, Tag: 0x4711}
		ram := newRAM(t, 1<<20, false)
		d := serve(t, c, cfg, ram)
		id := d.ID()
		if err := d.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		info, err := c.orphan(t.Context(), id, 0)
		if err != nil {
			t.Fatal(err)
		}
		begin := func() {
			t.Helper()
			if err := patiently(t.Context(), func() error { return c.StartRecovery(t.Context(), id) }); err != nil {
				t.Fatal(err)
			}
		}
		recover := func(what string) {
			t.Helper()
			d, err := c.Recover(t.Context(), id, cfg, ram)
			if err != nil {
				t.Fatalf("%d queues, %s: %v", queues, what, err)
			}
			if what == "fetched" {
				if err := d.Leave(t.Context()); err != nil {
					t.Fatal(err)
				}
				return
			}
			if err := d.Start(t.Context()); err != nil {
				t.Fatalf("%d queues, %s: %v", queues, what, err)
			}
			if _, err := os.ReadFile(d.Path()); err != nil {
				t.Errorf("%d queues, %s: %v", queues, what, err)
			}
			if err := d.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		begin()
		recover("nothing fetched")
		begin()
		part := info
		part.Queues = 1
		if err := c.sweep(t.Context(), part); err != nil {
			t.Fatal(err)
		}
		recover("one queue fetched")
		recover("fetched")
		recover("all queues fetched")

		other := cfg
		other.Size /= 2
		if _, err := c.Recover(t.Context(), id, other, ram); !errors.Is(err, ErrNotRecoverable) || !errors.Is(err, ErrOtherDisk) {
			t.Errorf("a smaller one: %v", err)
		}
		other.Size = 4 * cfg.Size // the device keeps its own
		larger, err := c.Recover(t.Context(), id, other, ram)
		if err != nil {
			t.Fatal(err)
		}
		if got := larger.Config().Size; got != cfg.Size {
			t.Errorf("from a larger one: %d bytes", got)
		}
		if err := larger.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		other = cfg
		other.Tag = d.Info().Tag + 1 // the number of another device
		if _, err := c.Recover(t.Context(), id, other, ram); !errors.Is(err, ErrNoDevice) {
			t.Errorf("one with another mark: %v", err)
		}
		recover("after a refusal")
		if err := c.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	mortal := serve(t, c, Config{Size: 1 << 20}, newRAM(t, 1<<20, false))
	if _, err := c.Recover(t.Context(), mortal.ID(), Config{Size: 1 << 20}, newRAM(t, 1<<20, false)); !errors.Is(err, ErrNotRecoverable) || errors.Is(err, ErrOtherDisk) {
		t.Errorf("a device without recovery: %v", err)
	}
}

// No request reaches the handler before Start, when whatever the device is served from has
// been had; newer drivers have new ones wait for no END_USER_RECOVERY.
func TestRecoverHoldsEarlyRequests(t *testing.T) {
	c := control(t)
	for _, end := range []string{"start", "leave", "stop"} {
		t.Run(end, func(t *testing.T) {
			cfg := Config{ID: -1, Size: 1 << 20, Queues: 2, Depth: 4, Recovery: RecoverReissue, NoPartScan: true}
			ram := newRAM(t, 1<<20, false)
			d := serve(t, c, cfg, ram)
			f := openDirect(t, d, os.O_RDWR)
			if err := d.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			started := new(atomic.Bool)
			h := funcHandler{begin: func(r *Request) {
				if !started.Load() {
					t.Errorf("%v came before Start", r)
				}
				ram.Begin(r)
			}, transferred: ram.Transferred}
			next, err := c.Recover(t.Context(), d.ID(), cfg, h)
			if err != nil {
				t.Fatal(err)
			}
			b, done := aligned(t, 4096), make(chan error, 1)
			go func() { _, err := f.ReadAt(b, 0); done <- err }()
			for began := time.Now(); next.Stats().Reads == 0 && time.Since(began) < time.Second; {
				time.Sleep(time.Millisecond)
			}
			t.Logf("%d requests came before Start", next.Stats().Reads)
			switch end {
			case "leave":
				if err := next.Leave(t.Context()); err != nil {
					t.Fatal(err)
				}
				if next, err = c.Recover(t.Context(), d.ID(), cfg, h); err != nil {
					t.Fatal(err)
				}
			case "stop":
				started.Store(true)
				if err := next.Stop(t.Context()); err != nil {
					t.Fatal(err)
				}
				<-done // with or without an error
				return
			}
			started.Store(true)
			if err := next.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Errorf("the request failed: %v", err)
			}
			if err := next.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
