package ublk

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestVerifyFile(t *testing.T) {
	eachPath(t, func(t *testing.T, c *Control, p DataPath) {
		const size = 64 << 20
		f := backing(t, size, 0)
		d := serve(t, c, Config{Size: size, DataPath: p, VolatileCache: true, FUA: true, DiscardGranularity: 4096, WriteZeroes: true}, &fileHandler{f}, f)
		if got := d.Config().DataPath; got != p {
			t.Fatalf("the data path is %v", got)
		}
		verify(t, d, 16)
		s := d.Stats()
		t.Logf("%+v", s)
		if s.Reads == 0 || s.Writes == 0 || s.Discards == 0 {
			t.Fatal("not every kind of request came")
		}
	})
}

func TestVerifyMemory(t *testing.T) {
	for _, slow := range []bool{false, true} {
		name := "queue"
		if slow {
			name = "goroutine"
		}
		t.Run(name, func(t *testing.T) {
			eachPath(t, func(t *testing.T, c *Control, p DataPath) {
				const size = 32 << 20
				h := newRAM(t, size, slow)
				d := serve(t, c, Config{Size: size, Queues: 2, DataPath: p, DiscardGranularity: 512, WriteZeroes: true}, h)
				verify(t, d, 6)
				if s := d.Stats(); slow && s.Wakeups == 0 {
					t.Fatalf("no wake-up: %+v", s)
				}
			})
		})
	}
}

// When the driver cannot register a request's pages the transfer goes by the spare
// buffer, which the queues share. Half of the tags are made to fail.
func TestVerifyWithoutRegisteredBuffers(t *testing.T) {
	c := control(t)
	need(t, c, zeroCopyFeatures)
	const size = 32 << 20
	f := backing(t, size, 0)
	d := serve(t, c, Config{Size: size, Queues: 2, DataPath: ZeroCopy, DiscardGranularity: 4096, breakBufReg: true}, &fileHandler{f}, f)
	locked := len(d.spare.mem)
	for _, q := range d.Queues() {
		locked += len(q.mem)
	}
	if max := d.Info().MaxIO; locked != max {
		t.Errorf("%d queues have %d bytes mapped for requests, want %d for all", len(d.Queues()), locked, max)
	}
	verify(t, d, 6)
	if s := d.Stats(); s.Bounces == 0 || s.Bounces >= s.Reads+s.Writes {
		t.Fatalf("some transfers should have bounced: %+v", s)
	}
}

func TestFileSystem(t *testing.T) {
	eachPath(t, func(t *testing.T, c *Control, p DataPath) {
		const size = 128 << 20
		f := backing(t, size, 0)
		d := serve(t, c, Config{
			Size: size, DataPath: p, LogicalBlock: 4096, ChunkSectors: 2048,
			VolatileCache: true, DiscardGranularity: 1 << 20, WriteZeroes: true,
		}, &fileHandler{f}, f)
		run(t, "mkfs.ext4", "-q", d.Path())
		mnt := t.TempDir()
		if err := unix.Mount(d.Path(), mnt, "ext4", 0, "discard"); err != nil {
			t.Fatal(err)
		}
		mounted := true
		defer func() {
			if mounted {
				unix.Unmount(mnt, 0)
			}
		}()
		sums := map[string][]byte{}
		for _, name := range []string{"a", "b", "c", "d"} {
			data := make([]byte, 3<<20+12345)
			rand.Read(data)
			sums[name] = data
			if err := os.WriteFile(filepath.Join(mnt, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Remove(filepath.Join(mnt, "b")); err != nil {
			t.Fatal(err)
		}
		delete(sums, "b")
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Fatal(err)
		}
		mounted = false
		run(t, "fsck.ext4", "-f", "-n", d.Path())
		if err := unix.Mount(d.Path(), mnt, "ext4", unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		mounted = true
		for name, want := range sums {
			if got, err := os.ReadFile(filepath.Join(mnt, name)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("file %s is not what was written (%v)", name, err)
			}
		}
		if s := d.Stats(); s.Flushes == 0 {
			t.Errorf("no flush came: %+v", s)
		}
	})
}

func TestReadOnly(t *testing.T) {
	eachPath(t, func(t *testing.T, c *Control, p DataPath) {
		const size = 8 << 20
		f := backing(t, size, 0)
		d := serve(t, c, Config{Size: size, DataPath: p, ReadOnly: true, DiscardGranularity: 4096}, &fileHandler{f}, f)
		if got := sysAttr(t, d, "ro"); got != "1" {
			t.Errorf("ro is %s", got)
		}
		if err := os.WriteFile(d.Path(), make([]byte, 4096), 0); err == nil {
			t.Error("a write to a read-only device succeeded")
		}
		buf := aligned(t, 4096)
		if n, err := openDirect(t, d, unix.O_RDONLY).Read(buf); n != 4096 || err != nil {
			t.Errorf("read: %d, %v", n, err)
		}
		if s := d.Stats(); s.Writes != 0 || s.Discards != 0 {
			t.Errorf("the handler got to see writes: %+v", s)
		}
	})
}

func TestFlushAndFUA(t *testing.T) {
	c := control(t)
	const size = 8 << 20
	f := backing(t, size, 0)
	file := &fileHandler{f}
	var fua, syncs atomic.Int64
	h := funcHandler{transferred: file.Transferred, begin: func(r *Request) {
		if r.Op() == OpWrite && r.FUA() {
			fua.Add(1)
		}
		if r.Op() == OpFlush {
			syncs.Add(1)
		}
		file.Begin(r)
	}}
	buf := aligned(t, 4096)
	for _, cached := range []bool{true, false} {
		d := serve(t, c, Config{Size: size, VolatileCache: cached, FUA: cached}, h, f)
		fua.Store(0)
		syncs.Store(0)
		w := openDirect(t, d, unix.O_RDWR)
		if _, err := w.WriteAt(buf, 0); err != nil {
			t.Fatal(err)
		}
		if fua.Load() != 0 || syncs.Load() != 0 {
			t.Errorf("cached %v: a plain write brought %d FUA, %d flushes", cached, fua.Load(), syncs.Load())
		}
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		s := openDirect(t, d, unix.O_RDWR|unix.O_DSYNC)
		if _, err := s.WriteAt(buf, 4096); err != nil {
			t.Fatal(err)
		}
		s.Close()
		if (fua.Load() > 0) != cached || (syncs.Load() > 0) != cached {
			t.Errorf("cached %v: %d FUA, %d flushes", cached, fua.Load(), syncs.Load())
		}
	}
}

func TestErrorsReachTheUser(t *testing.T) {
	c := control(t)
	for _, want := range []unix.Errno{unix.EIO, unix.ENOSPC} {
		var armed atomic.Bool
		ram := newRAM(t, 1<<20, true)
		h := funcHandler{begin: func(r *Request) {
			if armed.Load() && r.Op() == OpWrite {
				r.CompleteHere(want)
				return
			}
			ram.Begin(r)
		}}
		d := serve(t, c, Config{Size: 1 << 20}, h)
		armed.Store(true)
		if _, err := openDirect(t, d, unix.O_WRONLY).Write(aligned(t, 4096)); !errors.Is(err, want) {
			t.Errorf("write: %v, want %v", err, want)
		}
	}
}

func TestWriteZeroesAndDiscard(t *testing.T) {
	eachPath(t, func(t *testing.T, c *Control, p DataPath) {
		// Larger than one request can be, to see the limits kept.
		const size = 10 << 30
		var longest, noUnmap atomic.Int64
		h := funcHandler{begin: func(r *Request) {
			switch r.Op() {
			case OpRead:
				r.CompleteHere(r.ZeroFill())
				return
			case OpWriteZeroes, OpDiscard:
				if r.NoUnmap() {
					noUnmap.Add(1)
				}
				longest.Store(max(longest.Load(), int64(r.Len())))
			}
			r.CompleteHere(0)
		}}
		d := serve(t, c, Config{Size: size, DataPath: p, DiscardGranularity: 1 << 20, WriteZeroes: true}, h)
		run(t, "blkdiscard", "-f", d.Path())
		if got := longest.Load(); got < 1<<30 || got >= 1<<32 {
			t.Errorf("longest discard: %d bytes", got)
		}
		longest.Store(0)
		run(t, "blkdiscard", "-f", "-z", d.Path())
		if s := d.Stats(); s.WriteZeroes == 0 || noUnmap.Load() == 0 || longest.Load() < 1<<30 {
			t.Errorf("%+v, %d keep the space, longest %d", s, noUnmap.Load(), longest.Load())
		}
		buf := bytes.Repeat([]byte{0xff}, 1<<20)
		direct := aligned(t, 1<<20)
		copy(direct, buf)
		if n, err := openDirect(t, d, unix.O_RDONLY).Read(direct); err != nil || !bytes.Equal(direct[:n], make([]byte, 1<<20)) {
			t.Errorf("ZeroFill: %d bytes, %v, or not zeroes", n, err)
		}
	})
}

func TestSetFileUnderLoad(t *testing.T) {
	eachPath(t, func(t *testing.T, c *Control, p DataPath) {
		const size = 1 << 20
		var files [2]*os.File
		for i := range files {
			files[i] = backing(t, 0, 0)
			if _, err := files[i].Write(bytes.Repeat([]byte{byte('a' + i)}, size)); err != nil {
				t.Fatal(err)
			}
		}
		d := serve(t, c, Config{Size: size, Queues: 2, DataPath: p}, &fileHandler{files[0]}, files[0])
		stop := make(chan struct{})
		ended := make(chan error)
		dev, other := openDirect(t, d, unix.O_RDONLY), openDirect(t, d, unix.O_RDONLY)
		noise := aligned(t, 64<<10)
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					ended <- nil
					return
				default:
				}
				if _, err := other.ReadAt(noise, int64(i%16)<<16); err != nil {
					ended <- err
					return
				}
			}
		}()
		buf := aligned(t, 4096)
		for i := range 100 {
			if err := d.SetFile(0, int(files[i%2].Fd())); err != nil {
				t.Fatal(err)
			}
			if _, err := dev.ReadAt(buf, int64(i)*4096); err != nil {
				t.Fatal(err)
			}
			if want := byte('a' + i%2); buf[0] != want || buf[4095] != want {
				t.Fatalf("round %d: read %q after SetFile, want %q", i, buf[0], want)
			}
		}
		close(stop)
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	})
}

func TestDeepAndWide(t *testing.T) {
	eachPath(t, func(t *testing.T, c *Control, p DataPath) {
		const size = 32 << 20
		f := backing(t, size, 0)
		d := serve(t, c, Config{Size: size, Queues: MaxQueues, Depth: MaxDepth, MaxIO: 64 << 10, DataPath: p}, &fileHandler{f}, f)
		// The driver cuts the number down to the possible CPUs.
		if n := len(d.Queues()); n < runtime.NumCPU() || n == MaxQueues {
			t.Fatalf("%d queues", n)
		}
		if d.Info().Depth != MaxDepth {
			t.Fatalf("depth %d", d.Info().Depth)
		}
		fio(t, d, "--rw=randrw", "--bs=4k", "--size=8m", "--iodepth=2048", "--verify=crc32c", "--verify_fatal=1", "--numjobs=1")
	})
}

func TestUpdateSize(t *testing.T) {
	c := control(t)
	need(t, c, FeatureUpdateSize)
	f := backing(t, 8<<20, 0)
	d := serve(t, c, Config{Size: 1 << 20}, &fileHandler{f}, f)
	if got := sysAttr(t, d, "size"); got != "2048" {
		t.Fatalf("size %s", got)
	}
	if err := d.UpdateSize(t.Context(), 8<<20); err != nil {
		t.Fatal(err)
	}
	if got := sysAttr(t, d, "size"); got != "16384" {
		t.Fatalf("size %s after the update", got)
	}
	if _, err := openDirect(t, d, unix.O_RDWR).WriteAt(aligned(t, 4096), 7<<20); err != nil {
		t.Fatal(err)
	}
	var ce *ConfigError
	if err := d.UpdateSize(t.Context(), 1000); !errors.As(err, &ce) {
		t.Fatalf("an odd size: %v", err)
	}
}

func TestAllocatesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("to save time: TestQueueAllocatesNothing has the queue's part")
	}
	eachPath(t, func(t *testing.T, c *Control, p DataPath) {
		if _, err := exec.LookPath("fio"); err != nil {
			t.Skip(err)
		}
		const size = 16 << 20
		const requests = 25_000
		f := backing(t, size, 0)
		d := serve(t, c, Config{Size: size, DataPath: p, NoPartScan: true}, &fileHandler{f}, f)
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		defer cancel()
		load := exec.CommandContext(ctx, "fio", "--name=load", "--filename="+d.Path(), "--direct=1", "--ioengine=io_uring", "--iodepth=32",
			"--rw=randrw", "--bs=4k", "--time_based", "--runtime=200", "--size=16m", "--norandommap")
		if err := load.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			load.Process.Kill()
			load.Wait()
		}()
		served := func() uint64 { s := d.Stats(); return s.Reads + s.Writes }
		waitFor := func(n uint64) {
			for served() < n {
				if ctx.Err() != nil {
					t.Fatalf("%d requests served", served())
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		waitFor(served() + 5000)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		from := served()
		waitFor(from + requests)
		runtime.ReadMemStats(&after)
		n, mallocs := served()-from, after.Mallocs-before.Mallocs
		t.Logf("%d allocations for %d requests", mallocs, n)
		// The runtime's own (a garbage collection, a timer) are not the requests'.
		if mallocs > n/1000 {
			t.Fatalf("%d allocations for %d requests", mallocs, n)
		}
	})
}
