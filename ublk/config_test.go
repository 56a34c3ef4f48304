package ublk

import (
	"errors"
	"io/fs"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Numbers as the C compiler makes them of linux/ublk_cmd.h.
func TestCommandNumbers(t *testing.T) {
	for got, want := range map[uint32]uint32{
		cmdGetQueueAffinity: 0x80207501, cmdGetDevInfo: 0x80207502, cmdAddDev: 0xc0207504, cmdDelDev: 0xc0207505,
		cmdStartDev: 0xc0207506, cmdStopDev: 0xc0207507, cmdSetParams: 0xc0207508, cmdGetParams: 0x80207509,
		cmdStartUserRecovery: 0xc0207510, cmdEndUserRecovery: 0xc0207511, cmdGetFeatures: 0x80207513, cmdDelDevAsync: 0x80207514,
		cmdUpdateSize: 0xc0207515, cmdTryStopDev: 0xc0207517,
		ioFetchReq: 0xc0107520, ioCommitAndFetchReq: 0xc0107521,
	} {
		if got != want {
			t.Errorf("command %#x, want %#x", got, want)
		}
	}
	if got := userCopyOffset(3, 5); got != 0x80000000|3<<41|5<<25 {
		t.Errorf("user copy offset %#x", got)
	}
	if descStride != 98304 {
		t.Errorf("descriptors of two queues are %d bytes apart", descStride)
	}
}

func TestConfigDefaults(t *testing.T) {
	cfg := Config{Size: 1 << 20, LogicalBlock: 4096}
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	if cfg.Queues != 1 || cfg.Depth != 128 || cfg.MaxIO != 1<<20 || cfg.PhysicalBlock != 4096 || cfg.IOMin != 4096 {
		t.Errorf("defaults: %+v", cfg)
	}
	p := cfg.params()
	if p.MaxDiscard != 0 || p.MaxWriteZeroes != 0 {
		t.Errorf("range operations that were not asked for: %+v", p)
	}
	if raw := p.raw(); raw.types != paramTypeBasic || raw.public() != p {
		t.Errorf("there and back: %+v, %+v", p, raw.public())
	}
	cfg = Config{Size: 1 << 40, WriteZeroes: true, DiscardGranularity: 1 << 20, DMAAlign: 512, ReadOnly: true}
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	p = cfg.params()
	raw := p.raw()
	if raw.discard.maxDiscardSectors != 0x7fffff || raw.discard.maxWriteZeroesSectors != 0x7fffff || raw.discard.maxDiscardSegments != 1 {
		t.Errorf("range limits: %+v", raw.discard)
	}
	if raw.public() != p {
		t.Errorf("there and back: %+v, %+v", p, raw.public())
	}
}

func TestConfigErrors(t *testing.T) {
	for field, cfg := range map[string]Config{
		"Size":               {},
		"Size ":              {Size: 1000},
		"Size  ":             {Size: 512, LogicalBlock: 4096},
		"Queues":             {Size: 512, Queues: MaxQueues + 1},
		"Depth":              {Size: 512, Depth: MaxDepth + 1},
		"Depth ":             {Size: 512, Depth: -1},
		"MaxIO":              {Size: 512, MaxIO: 64 << 20},
		"MaxIO ":             {Size: 512, MaxIO: 5000},
		"LogicalBlock":       {Size: 3072, LogicalBlock: 1536},
		"LogicalBlock ":      {Size: 1 << 20, LogicalBlock: 1 << 20},
		"PhysicalBlock":      {Size: 4096, LogicalBlock: 4096, PhysicalBlock: 512},
		"IOMin":              {Size: 512, IOMin: 3},
		"IOOpt":              {Size: 512, IOOpt: 1 << 30},
		"ChunkSectors":       {Size: 4096, LogicalBlock: 4096, ChunkSectors: 3},
		"DMAAlign":           {Size: 512, DMAAlign: 3},
		"FUA":                {Size: 512, FUA: true},
		"DiscardGranularity": {Size: 512, DiscardGranularity: 100},
		"MaxDiscard":         {Size: 512, MaxDiscard: 1 << 32},
		"MaxWriteZeroes":     {Size: 512, MaxWriteZeroes: -1},
		"Files":              {Size: 512, Files: -1},
		"DataPath":           {Size: 512, DataPath: 9},
		"Recovery":           {Size: 512, Recovery: -1},
	} {
		var ce *ConfigError
		if err := cfg.complete(); !errors.As(err, &ce) || ce.Field != strings.TrimSpace(field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestFeatureNames(t *testing.T) {
	f := FeatureZeroCopy | FeatureAutoBufReg | 1<<40
	if got := f.String(); got != "SUPPORT_ZERO_COPY|AUTO_BUF_REG|bit 40" {
		t.Error(got)
	}
	if got := Feature(0).String(); got != "none" {
		t.Error(got)
	}
	for f, want := range map[Feature]string{
		zeroCopyFeatures: "6.16", FeatureUserCopy: "6.5", FeatureSafeStop | FeatureUserCopy: "7.0", 1 << 40: "", 0: "",
	} {
		if got := f.Since(); got != want {
			t.Errorf("%v since %q, want %q", f, got, want)
		}
	}
	for _, p := range [][2]string{{"6.9", "6.16"}, {"6.16", "7.0"}, {"", "6.0"}, {"6.12.107+deb13-amd64", "6.13"}} {
		if !releaseLess(p[0], p[1]) || releaseLess(p[1], p[0]) {
			t.Errorf("%s is not before %s", p[0], p[1])
		}
	}
	if err := (&MissingFeatureError{FeatureAutoBufReg}).Error(); !strings.Contains(err, "AUTO_BUF_REG") || !strings.Contains(err, "6.16") {
		t.Error(err)
	}
}

// No device takes QUIESCE_DEV, under which drivers before 7.3 corrupt memory.
func TestNoDeviceTakesQuiesce(t *testing.T) {
	c := new(Control)
	c.features.Store(1<<64 - 1) // a driver that offers everything
	for _, r := range []Recovery{NoRecovery, RecoverWait, RecoverReissue} {
		cfg := Config{Size: 512, Recovery: r}
		flags, err := cfg.flags(t.Context(), c)
		if err != nil || flags.Has(FeatureQuiesce) || !flags.Has(FeatureUpdateSize) {
			t.Errorf("recovery %d: %v, %v", r, flags, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrNoDriver) || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "modprobe ublk_drv") {
		t.Error(err)
	}
}

func TestErrorsExplain(t *testing.T) {
	for _, c := range []struct {
		op    uint32
		errno unix.Errno
		want  error
		text  string
	}{
		{cmdAddDev, unix.EACCES, ErrTooManyDevices, "ublks_max"},
		{cmdAddDev, unix.EEXIST, ErrExists, ""},
		{cmdAddDev, unix.EPERM, ErrPermission, "CAP_SYS_ADMIN"},
		{cmdGetDevInfo, unix.ENODEV, ErrNoDevice, ""},
		{cmdTryStopDev, unix.EBUSY, unix.EBUSY, "in use"},
		{cmdStartUserRecovery, unix.EBUSY, unix.EBUSY, "try again"},
		{cmdStopDev, unix.EIO, unix.EIO, ""},
	} {
		err := error(&CommandError{Command: "COMMAND", Device: 7, Err: explain(command{op: c.op}, c.errno)})
		if !errors.Is(err, c.want) || !errors.Is(err, c.errno) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "device 7") {
			t.Errorf("%#x, %v: %v", c.op, c.errno, err)
		}
	}
}

// The control thread answers and ends on a file that is not the driver's.
func TestControlOnAnotherFile(t *testing.T) {
	c, err := Open("/dev/zero")
	if err != nil {
		t.Skip(err)
	}
	if _, err := c.GetInfo(t.Context(), 0); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("GET_DEV_INFO of /dev/zero: %v", err)
	}
	if _, err := c.Features(t.Context()); !errors.Is(err, ErrTooOld) {
		t.Errorf("GET_FEATURES of /dev/zero: %v", err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.GetInfo(t.Context(), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	runtime.GC() // a pin that was left would panic
}
