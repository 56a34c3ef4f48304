package device

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/hack/faultfs"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/standby"
	"holdfast/ublk"
)

// TestWalk does thousands of seeded steps to a device: I/O of several users, faults of
// its storage, hangs, attach, detach, key, standby by hand, replacements by the same
// files, the other mount and copies, resume by itself, time-outs, removal. A model
// knows what each block may hold, and when a request may fail. At rest points everything
// is mended, and all requests must have ended, once, and all blocks be right.
//
// HOLDFAST_WALK_SEEDS (1,2,3) and HOLDFAST_WALK_STEPS say which walks and how long.
func TestWalk(t *testing.T) {
	ctl := openControl(t)
	seeds, steps := os.Getenv("HOLDFAST_WALK_SEEDS"), 700
	if seeds == "" {
		seeds = "1,2,3"
		if testing.Short() {
			steps, seeds = 300, "1"
			if onOtherKernel(0) {
				seeds = "2"
			}
		}
	}
	if s := os.Getenv("HOLDFAST_WALK_STEPS"); s != "" {
		var err error
		if steps, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	for s := range strings.SplitSeq(seeds, ",") {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(s, func(t *testing.T) { newWalk(t, ctl, seed).run(steps) })
	}
}

const (
	walkers      = 12
	walkClusters = 4 // of each walker
	// walkDrain keeps a replacement from waiting long for what hangs.
	walkDrain = 50 * time.Millisecond
)

// walk is a device on its way, the driver's part. Its walkers have the rest.
type walk struct {
	*Device
	t       *testing.T
	rng     *rand.Rand
	ctl     *ublk.Control
	key     *testKey
	storage faultfs.Options
	mounts  *twoMounts
	names   []string
	made    int // copies
	spec    api.Spec
	fd      rawDisk
	allowed permission
	armed   map[string]bool // key and consumers that are on
	hanging int             // rules
	walkers []*walker
	did     map[string]int
	said    string // the last steps
}

func newWalk(t *testing.T, ctl *ublk.Control, seed uint64) *walk {
	w := &walk{t: t, rng: rand.New(rand.NewPCG(seed, 1)), ctl: ctl, key: newTestKey(),
		armed: map[string]bool{}, did: map[string]int{}, names: []string{"base", "top"}}
	w.storage = faultfs.Options{Locks: seed%3 == 0, AsyncIO: seed%4 == 0, OneWriter: seed%2 == 1}
	w.mounts = newTwoMounts(t, w.storage)
	size := int64(walkers * walkClusters * clusterBlocks * blockSize)
	for _, n := range w.names {
		if err := ploop.Create(filepath.Join(w.mounts.backing, n), ploop.CreateOptions{Size: size, ClusterSize: clusterBlocks * blockSize, AnyClusterSize: true}); err != nil {
			t.Fatal(err)
		}
	}
	base, err := stack.Open([]ploop.ImageRef{{Path: filepath.Join(w.mounts.backing, "base")}}, stack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range walkers {
		k := &walker{w: w, first: uint64(i * walkClusters * clusterBlocks), legal: make([][]uint64, walkClusters*clusterBlocks),
			rng: rand.New(rand.NewPCG(seed, uint64(100+i))), jobs: make(chan string)}
		p := make([]byte, blockSize)
		for b := range k.legal {
			k.legal[b] = []uint64{0}
			if b < len(k.legal)/2 {
				k.version = 1
				k.legal[b] = []uint64{1}
				fill(p, k.first+uint64(b), 1)
				if _, err := base.WriteAt(p, int64(k.first+uint64(b))*blockSize); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.walkers = append(w.walkers, k)
		go k.run()
		t.Cleanup(func() { close(k.jobs) })
	}
	if err := base.Close(); err != nil {
		t.Fatal(err)
	}
	w.allowed.set(true)
	w.open()
	t.Cleanup(func() { // if the walk fails on its way
		w.mounts.a.Close()
		w.mounts.b.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		w.Close(ctx, true)
	})
	return w
}

func (w *walk) one(n int) bool { return w.rng.IntN(n) == 0 }

func pick[T any](w *walk, from ...T) T { return from[w.rng.IntN(len(from))] }

func (w *walk) mount() *faultfs.Storage { return pick(w, w.mounts.a, w.mounts.b) }

func (w *walk) trigger() unix.Errno { return pick(w, unix.EBUSY, unix.ENOTCONN, unix.EIO) }

// open makes the device, by either way.
func (w *walk) open() {
	w.spec = api.Spec{Name: "walk", Images: refs(w.mount(), w.names...), Queues: 1 + w.rng.IntN(2), Depth: 32,
		DataPath: pick(w, dataPathsOf(w.t, w.ctl)...), Resume: pick(w, api.ResumeManual, api.ResumeReopen),
		// What a request gets whose FUSE server dies under it.
		StandbyErrors: []string{"EBUSY", "ENOTCONN", "EIO", "ECONNABORTED"}}
	if w.one(4) {
		w.spec.StandbyTimeout = api.Duration(time.Duration(20+w.rng.IntN(300)) * time.Millisecond)
	}
	o := Options{Control: w.ctl, Key: w.key.Switch, TakeOver: true, Log: zerolog.New(zerolog.NewTestWriter(w.t)).Level(zerolog.WarnLevel)}
	d, err := Open(w.t.Context(), w.spec, o)
	// A lock that couldn't be given back, as the storage was dead, goes some time after its
	// file was closed.
	for end := time.Now().Add(time.Minute); w.storage.Locks && errors.Is(err, ploop.ErrLocked) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		d, err = Open(w.t.Context(), w.spec, o)
	}
	if err != nil {
		w.fatal("making the device: %v", err)
	}
	w.Device = d
	fd, err := unix.Open(d.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		w.fatal("%v", err)
	}
	w.fd = rawDisk(fd)
	for who, on := range w.armed {
		if on && who != "key" {
			if err := d.Attach(who); err != nil {
				w.fatal("%v", err)
			}
		}
	}
	w.permit()
}

// permit says from what is armed whether requests may fail from now.
func (w *walk) permit() {
	w.allowed.set(!w.armed["key"] || !w.armed["c1"] && !w.armed["c2"] || w.spec.StandbyTimeout != 0)
}

func (w *walk) fatal(format string, args ...any) {
	w.t.Helper()
	state := ""
	if w.Device != nil {
		s := w.Status()
		state = fmt.Sprintf("\n%s, state %s since %v, gate %v, inflight %d\nstandby %+v", s.DataPath, s.State, time.Since(s.Since), s.Gate, s.Counters.InFlight, s.Standby)
	}
	w.t.Fatalf("%s%s\nsteps: %s", fmt.Sprintf(format, args...), state, w.said)
}

// arm turns the key or a consumer's lease on or off.
func (w *walk) arm(who string, on bool) {
	if w.armed[who] == on {
		return
	}
	w.armed[who] = on
	if !on {
		w.permit() // before it is so
	}
	var err error
	switch {
	case who == "key" && on:
		w.key.Enable("walk")
	case who == "key":
		err = w.key.Disable("walk")
	case on:
		err = w.Attach(who)
	default:
		err = w.Detach(who)
	}
	if err != nil {
		w.fatal("%s %v: %v", who, on, err)
	}
	w.permit()
}

func (w *walk) run(n int) {
	for _, who := range []string{"key", "c1"} {
		w.arm(who, true)
	}
	for i := range n {
		what := w.step()
		w.did[what]++
		w.said = fmt.Sprintf("%s %d:%s", w.said[max(0, len(w.said)-1500):], i, what)
		if w.t.Failed() {
			w.fatal("a walker failed")
		}
		if i%150 == 149 {
			w.rest()
		}
	}
	w.rest()
	w.end()
	w.t.Logf("%d steps: %v; I/O: %v", n, w.did, w.walkerStats())
}

// step does one thing and says what.
func (w *walk) step() string {
	switch n := w.rng.IntN(100); {
	case n < 64:
		for range 4 {
			k := pick(w, w.walkers...)
			job := pick(w, "read", "read", "write", "write", "write", "through", "flush", "zero", "discard")
			select {
			case k.jobs <- job:
			case <-time.After(time.Millisecond): // it waits for the device
			}
		}
		return "io"
	case n < 67:
		w.mount().Dead(w.trigger())
		return "dead"
	case n < 72:
		w.mend(w.mount(), w.one(2))
		return "mend"
	case n < 77:
		w.mount().Add(faultfs.Rule{Op: pick(w, faultfs.Read, faultfs.Write, faultfs.Write, faultfs.Fsync, faultfs.Fallocate, faultfs.Truncate, faultfs.Any),
			Errno: w.trigger(), After: w.rng.IntN(4), Times: 1 + w.rng.IntN(3), Partial: pick[int64](w, 0, 0, 512, 4096), Apply: w.one(3), Delay: time.Duration(w.rng.IntN(3)) * time.Millisecond})
		return "fault"
	case n < 79:
		op := pick(w, faultfs.Read, faultfs.Write, faultfs.Write)
		if op == faultfs.Read && w.storage.OneWriter {
			return "no short" // it would be the file's end, see package faultfs
		}
		w.mount().Add(faultfs.Rule{Op: op, Partial: 1024, Times: 1 + w.rng.IntN(5)})
		return "short"
	case n < 81:
		if w.hanging > 3 {
			return "no hang"
		}
		w.hanging++
		w.mount().Add(faultfs.Rule{Op: pick(w, faultfs.Read, faultfs.Write, faultfs.Write, faultfs.Fsync), Times: 1 + w.rng.IntN(3), Hang: true})
		return "hang"
	case n < 82:
		w.kill()
		return "kill"
	case n < 84:
		w.arm(pick(w, "key", "c1", "c2"), w.one(2))
		return "arm"
	case n < 87:
		for _, who := range []string{"key", "c1"} {
			w.arm(who, true)
		}
		return "arm all"
	case n < 88:
		if err := w.SetStandby(true); err != nil && !errors.Is(err, standby.ErrNotSupported) {
			w.fatal("standby by hand: %v", err)
		}
		return "on"
	case n < 89:
		w.allowed.set(true) // for those as well that come while it is done
		if err := w.SetStandby(false); err != nil {
			w.fatal("off by hand: %v", err)
		}
		w.permit()
		return "off"
	case n < 95:
		return w.replace(w.mount(), pick(w, -1, -1, -1, 0))
	case n < 97:
		return w.copyTop()
	case n < 98:
		w.recreate()
		return "recreate"
	}
	time.Sleep(time.Duration(w.rng.IntN(20)) * time.Millisecond)
	return "wait"
}

// mend makes a way work again. What hangs there lands late, or never.
func (w *walk) mend(s *faultfs.Storage, land bool) {
	s.Dead(0)
	if land {
		s.Clear()
	} else {
		s.Drop(0, unix.EIO)
	}
	w.hanging = 0
}
