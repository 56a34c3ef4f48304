package ublk

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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
