package ublk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Feature is a set of UBLK_F_* bits: what a driver offers, or what a device was
// made with.
type Feature uint64

// The features by their bits in linux/ublk_cmd.h.
const (
	FeatureZeroCopy        Feature = 1 << 0  // pages of a request as an io_uring buffer
	FeatureCompInTask      Feature = 1 << 1  // completion by task work; always on
	FeatureNeedGetData     Feature = 1 << 2  // writes ask for their buffer late; not used here
	FeatureUserRecovery    Feature = 1 << 3  // the device outlives its server
	FeatureRecoveryReissue Feature = 1 << 4  // and a new server gets the dead one's requests again
	FeatureUnprivileged    Feature = 1 << 5  // devices of ordinary users; not used here
	FeatureIoctlEncode     Feature = 1 << 6  // commands encoded as ioctls; required
	FeatureUserCopy        Feature = 1 << 7  // pread and pwrite on /dev/ublkcN reach a request's pages
	FeatureZoned           Feature = 1 << 8  // zoned devices; not used here
	FeatureRecoveryFailIO  Feature = 1 << 9  // without a server I/O fails instead of waiting
	FeatureUpdateSize      Feature = 1 << 10 // the size of a live device can change
	FeatureAutoBufReg      Feature = 1 << 11 // pages are registered with the ring by the driver
	FeatureQuiesce         Feature = 1 << 12 // a server can be taken off a live device
	FeaturePerIODaemon     Feature = 1 << 13 // a server thread per tag; not used here
	FeatureBufRegOffDaemon Feature = 1 << 14 // buffers registered from any thread; not used here
	FeatureBatchIO         Feature = 1 << 15 // commands in batches; not used here
	FeatureIntegrity       Feature = 1 << 16 // protection information; not used here
	FeatureSafeStop        Feature = 1 << 17 // stop only if nobody has it open
	FeatureNoPartScan      Feature = 1 << 18 // leave the partition table alone at start
	FeatureShmemZeroCopy   Feature = 1 << 19 // zero copy of a client's shared memory; not used here
)

// Names are the kernel's; releases are those whose ublk_cmd.h first had the bit.
var features = [...]struct{ name, since string }{
	{"SUPPORT_ZERO_COPY", "6.15"}, // the bit is from 6.0, a driver that honours it from 6.15
	{"URING_CMD_COMP_IN_TASK", "6.0"},
	{"NEED_GET_DATA", "6.0"},
	{"USER_RECOVERY", "6.1"},
	{"USER_RECOVERY_REISSUE", "6.1"},
	{"UNPRIVILEGED_DEV", "6.3"},
	{"CMD_IOCTL_ENCODE", "6.4"},
	{"USER_COPY", "6.5"},
	{"ZONED", "6.6"},
	{"USER_RECOVERY_FAIL_IO", "6.13"},
	{"UPDATE_SIZE", "6.16"},
	{"AUTO_BUF_REG", "6.16"},
	{"QUIESCE", "6.16"},
	{"PER_IO_DAEMON", "6.16"},
	{"BUF_REG_OFF_DAEMON", "6.17"},
	{"BATCH_IO", "7.0"},
	{"INTEGRITY", "7.0"},
	{"SAFE_STOP_DEV", "7.0"},
	{"NO_AUTO_PART_SCAN", "7.0"},
	{"SHMEM_ZC", "7.1"},
}

// Has reports whether every bit of g is in f.
func (f Feature) Has(g Feature) bool { return f&g == g }

// Names lists the features by the kernel's names, unknown bits as numbers.
func (f Feature) Names() []string {
	var names []string
	for i := range 64 {
		bit := Feature(1) << i
		switch {
		case f&bit == 0:
		case i < len(features):
			names = append(names, features[i].name)
		default:
			names = append(names, fmt.Sprintf("bit %d", i))
		}
	}
	return names
}

// String joins the names with |.
func (f Feature) String() string {
	if f == 0 {
		return "none"
	}
	return strings.Join(f.Names(), "|")
}

// Since is the Linux release that brought all of f ("6.16"), or "" if a bit is
// unknown.
func (f Feature) Since() string {
	since := ""
	for i := range 64 {
		if f>>i&1 == 0 {
			continue
		}
		if i >= len(features) {
			return ""
		}
		if s := features[i].since; releaseLess(since, s) {
			since = s
		}
	}
	return since
}

// releaseLess compares "6.9" with "6.16" by numbers.
func releaseLess(a, b string) bool {
	var am, an, bm, bn int
	fmt.Sscanf(a, "%d.%d", &am, &an)
	fmt.Sscanf(b, "%d.%d", &bm, &bn)
	return am < bm || am == bm && an < bn
}

// Features asks the driver what it offers. The answer is remembered; a failure
// to ask is not. A driver that cannot be asked (before 6.5) is too old for this
// package and gives ErrTooOld.
func (c *Control) Features(ctx context.Context) (Feature, error) {
	if f := Feature(c.features.Load()); f != 0 {
		return f, nil
	}
	f := new(Feature)
	_, err := c.run(ctx, command{op: cmdGetFeatures, name: "GET_FEATURES", dev: -1, mem: unsafe.Pointer(f), n: 8})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return 0, fmt.Errorf("ublk: GET_FEATURES: %w", ErrTooOld)
	}
	if err != nil {
		return 0, err
	}
	c.features.Store(uint64(*f))
	return *f, nil
}

// Require returns a *MissingFeatureError when the driver does not offer all of f.
func (c *Control) Require(ctx context.Context, f Feature) error {
	have, err := c.Features(ctx)
	if err != nil {
		return err
	}
	if !have.Has(f) {
		return &MissingFeatureError{Missing: f &^ have}
	}
	return nil
}

// MissingFeatureError says that the running kernel's driver lacks something.
type MissingFeatureError struct {
	Missing Feature
}

var _ error = (*MissingFeatureError)(nil)

func (e *MissingFeatureError) Error() string {
	since := e.Missing.Since()
	if since == "" {
		since = "a later version"
	}
	var u unix.Utsname
	running := ""
	if unix.Uname(&u) == nil {
		running = " (" + unix.ByteSliceToString(u.Release[:]) + ")"
	}
	return fmt.Sprintf("ublk: this kernel's driver%s lacks %s, which Linux %s brought", running, e.Missing, since)
}
