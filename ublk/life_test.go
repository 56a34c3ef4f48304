package ublk

import (
	"context"
	"errors"
	"fmt"
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

// Stop ends by its deadline while a request is held, and by itself when it is let go.
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

// A command that waits for what never comes is given up at its deadline.
func TestCommandDeadline(t *testing.T) {
	c := control(t)
	info, err := c.Add(t.Context(), AddRequest{ID: -1, Queues: 1, Depth: 1, MaxIO: 4096 * 16, Flags: FeatureIoctlEncode, Tag: 0xfeedface})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Delete(context.Background(), info.ID)
	cfg := Config{Size: 1 << 20, MaxIO: 4096 * 16}
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	if err := c.SetParams(t.Context(), info.ID, cfg.params()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	err = c.Start(ctx, info.ID) // nobody has fetched
	var ce *CommandError
	if !errors.As(err, &ce) || ce.Command != "START_DEV" || ce.Device != info.ID || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Start: %v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Fatalf("Start took %v", took)
	}
	got, err := c.GetInfo(t.Context(), info.ID)
	if err != nil || got.Tag != 0xfeedface || got.State != Dead || got.Depth != 1 {
		t.Fatalf("info %+v, %v", got, err)
	}
	canceled, stop := context.WithCancel(t.Context())
	stop()
	if err := c.Start(canceled, info.ID); !errors.Is(err, context.Canceled) {
		t.Fatalf("with a cancelled context: %v", err)
	}
}

func TestParametersAndNumbers(t *testing.T) {
	c := control(t)
	const size = 4 << 20
	align, mask := 0, "3"
	if !releaseLess(release(t), "6.15") { // older drivers do not know the parameter
		align, mask = 512, "511"
	}
	d := serve(t, c, Config{
		Size: size, LogicalBlock: 4096, PhysicalBlock: 8192, IOMin: 16384, IOOpt: 65536, MaxIO: 512 << 10, ChunkSectors: 2048, DMAAlign: align,
		DiscardGranularity: 1 << 20, WriteZeroes: true, Rotational: true, VolatileCache: true, FUA: true, Tag: 42,
	}, newRAM(t, size, false))
	for name, want := range map[string]string{
		"size": "8192", "ro": "0", "queue/logical_block_size": "4096", "queue/physical_block_size": "8192", "queue/minimum_io_size": "16384",
		"queue/optimal_io_size": "65536", "queue/max_hw_sectors_kb": "512", "queue/chunk_sectors": "2048", "queue/dma_alignment": mask,
		"queue/discard_granularity": "1048576", "queue/discard_max_hw_bytes": "4294966784", "queue/write_zeroes_max_bytes": "4294966784",
		"queue/rotational": "1", "queue/write_cache": "write back", "queue/fua": "1",
	} {
		if got := sysAttr(t, d, name); got != want {
			// The range limits are rounded down to the granularity.
			if n, err := strconv.ParseInt(got, 10, 64); err == nil && n >= 4293918720 && n < 1<<32 && strings.HasSuffix(name, "_bytes") {
				continue
			}
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	p, err := c.GetParams(t.Context(), d.ID())
	if err != nil {
		t.Fatal(err)
	}
	cfg := d.Config()
	want := cfg.params()
	want.CharMajor, want.CharMinor, want.DiskMajor, want.DiskMinor = p.CharMajor, p.CharMinor, p.DiskMajor, p.DiskMinor
	if p != want {
		t.Errorf("parameters %+v, want %+v", p, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(d.Path(), &st); err != nil || unix.Major(st.Rdev) != p.DiskMajor || unix.Minor(st.Rdev) != p.DiskMinor {
		t.Errorf("device number %#x, parameters say %d:%d (%v)", st.Rdev, p.DiskMajor, p.DiskMinor, err)
	}
	info, err := c.GetInfo(t.Context(), d.ID())
	if err != nil || info.State != Live || info.ServerPID != os.Getpid() || info.Tag != 42 {
		t.Errorf("info %+v, %v", info, err)
	}
	ids, err := c.List()
	if err != nil || !contains(ids, d.ID()) {
		t.Errorf("list %v, %v", ids, err)
	}
	cpus, err := c.Affinity(t.Context(), d.ID(), 0)
	if err != nil || len(cpus.List()) == 0 {
		t.Errorf("affinity %v, %v", cpus, err)
	}
	if _, err := c.Affinity(t.Context(), d.ID(), 1); err == nil {
		t.Error("affinity of a queue that is not")
	}
	if _, err := c.Add(t.Context(), AddRequest{ID: d.ID(), Queues: 1, Depth: 1, MaxIO: 4096}); !errors.Is(err, ErrExists) {
		t.Errorf("a number that is taken: %v", err)
	}
	if err := c.SetParams(t.Context(), d.ID(), p); err == nil {
		t.Error("parameters of a live device were changed")
	}
	if err := c.StartRecovery(t.Context(), d.ID()); !errors.Is(err, unix.EINVAL) {
		t.Errorf("recovery of a device without: %v", err)
	}
	const nobody = 999_999
	for name, err := range map[string]error{
		"Stop": c.Stop(t.Context(), nobody), "Start": c.Start(t.Context(), nobody), "Delete": c.Delete(t.Context(), nobody),
		"DeleteAsync": c.DeleteAsync(t.Context(), nobody), "EndRecovery": c.EndRecovery(t.Context(), nobody),
	} {
		if !errors.Is(err, ErrNoDevice) {
			t.Errorf("%s of no device: %v", name, err)
		}
	}
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

func TestTooManyDevices(t *testing.T) {
	c := control(t)
	const path = "/sys/module/ublk_drv/parameters/ublks_max"
	if parm := run(t, "modinfo", "-F", "parm", "ublk_drv"); strings.Contains(parm, "unprivileged") {
		t.Skip("this driver's ublks_max counts only devices of ordinary users: " + parm)
	}
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(path, old, 0)
	_, err = c.Create(t.Context(), Config{ID: -1, Size: 1 << 20}, newRAM(t, 1<<20, false))
	if !errors.Is(err, ErrTooManyDevices) {
		t.Fatalf("with ublks_max 0: %v", err)
	}
}

func TestFeaturesOfThisKernel(t *testing.T) {
	c := control(t)
	f, err := c.Features(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Linux %s: %#x %v", release(t), uint64(f), f)
	for i := range features {
		bit := Feature(1) << i
		if bit == FeatureIntegrity || bit == FeatureZoned {
			continue // by the kernel's configuration
		}
		if old := releaseLess(release(t), bit.Since()); old == f.Has(bit) {
			t.Errorf("%v: has it %v, and the table says Linux %s", bit, f.Has(bit), bit.Since())
		}
	}
	if err := c.Require(t.Context(), 1<<63); err == nil || !strings.Contains(err.Error(), "bit 63") {
		t.Errorf("a feature of the future: %v", err)
	}
}

func TestForcedPathIsAClearError(t *testing.T) {
	c := control(t)
	f, err := c.Features(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.Create(t.Context(), Config{ID: -1, Size: 1 << 20, DataPath: ZeroCopy}, newRAM(t, 1<<20, false))
	if f.Has(zeroCopyFeatures) {
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		return
	}
	var missing *MissingFeatureError
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), "6.16") {
		t.Fatalf("zero copy where there is none: %v", err)
	}
}

// A Create that fails halfway leaves nothing behind.
func TestFailedCreate(t *testing.T) {
	c := control(t)
	before, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	// Ever more descriptors are to be had, until it succeeds: each step of Create
	// has failed once.
	ram := newRAM(t, 1<<20, false)
	open := len(fds(t))
	failed := 0
	for extra := 0; ; extra++ {
		if extra > 64 {
			t.Fatal("no number of descriptors is enough")
		}
		low := lim
		low.Cur = uint64(open + extra)
		unix.Setrlimit(unix.RLIMIT_NOFILE, &low)
		d, err := c.Create(t.Context(), Config{ID: -1, Size: 1 << 20, Queues: 2, Files: 4}, ram)
		unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
		if err == nil {
			if err := d.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			break
		}
		failed++
		if !errors.Is(err, unix.EMFILE) {
			t.Fatalf("with %d descriptors: %v", extra, err)
		}
	}
	if failed < 2 {
		t.Errorf("failed only %d times", failed)
	}
	after, err := c.List()
	if err != nil || fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("devices before %v, after %v (%v)", before, after, err)
	}
	if now := len(fds(t)); now > open {
		t.Errorf("%d descriptors before, %d after", open, now)
	}
}

func fds(t *testing.T) []os.DirEntry {
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestProtectProcess(t *testing.T) {
	if os.Getenv("HOLDFAST_VM") == "" {
		t.Skip("locks memory; runs in the VM")
	}
	if err := ProtectProcess(); err != nil {
		t.Fatal(err)
	}
	defer unix.Munlockall()
	n := 0
	done := make(chan struct{})
	for range 4 {
		go func() {
			if v, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err != nil || v != 1 {
				t.Errorf("a thread is no I/O flusher: %d, %v", v, err)
			}
			done <- struct{}{}
		}()
		<-done
		n++
	}
	if n != 4 {
		t.Fatal(n)
	}
}
