package powercut

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/hack/tool"
	"holdfast/internal/failpoint"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/ublk"
)

// system is a file system to have images on.
type system struct {
	name  string
	size  int64
	mkfs  []string
	mount string // options
	again string // and of a second one beside the first
	unit  int    // of the disk, which isn't torn
}

var systems = []system{
	{"ext4", 192 << 20, []string{"mkfs.ext4", "-q", "-F", "-E", "nodiscard"}, "", "", 512},
	{"ext4", 192 << 20, []string{"mkfs.ext4", "-q", "-F", "-E", "nodiscard"}, "data=writeback", "data=writeback", 512},
	{"xfs", 320 << 20, []string{"mkfs.xfs", "-q", "-f", "-K"}, "", "nouuid", 512},
	{"btrfs", 320 << 20, []string{"mkfs.btrfs", "-q", "-f", "-K"}, "", "", 4096},
}

// TestPowerCut works on images on a real file system, and cuts the power of its disk. With the protection off the
// test wants to see that go wrong.
func TestPowerCut(t *testing.T) {
	if os.Getenv("HOLDFAST_VM") == "" {
		t.Skip("runs in the VM only")
	}
	runtime.GOMAXPROCS(8) // the disk's requests are served beside those who wait for it
	must(t, tool.Run("modprobe", "ublk_drv"))
	cuts := 10
	if testing.Short() {
		cuts = 2
	}
	if s := os.Getenv("HOLDFAST_CUTS"); s != "" {
		var err error
		cuts, err = strconv.Atoi(s)
		must(t, err)
	}
	off := failpoint.Off("no-durable-room")
	wrong := 0
	for i, sys := range systems {
		if testing.Short() && os.Getenv("HOLDFAST_CASES") == []string{"odd", "even"}[i%2] {
			continue // the other kernel's, to save time
		}
		t.Run(strings.TrimSpace(sys.name+" "+sys.mount), func(t *testing.T) {
			if _, err := exec.LookPath(sys.mkfs[0]); err != nil {
				t.Fatal(err)
			}
			for _, err := range sys.cuts(t, cuts) {
				if wrong++; !off {
					t.Error(err)
				} else {
					t.Log(err)
				}
			}
		})
	}
	if off && wrong == 0 {
		t.Error("without durable room nothing goes wrong: the test sees nothing")
	}
}

// cuts plays rounds, each with an image of its own in the blocks of those before, and cuts the power in each.
func (sys *system) cuts(t *testing.T, rounds int) (wrong []error) {
	d := newDisk(sys.size)
	defer d.free()
	ctl, err := ublk.Open("")
	must(t, err)
	defer ctl.Close()
	dev, err := ctl.Create(t.Context(), ublk.Config{ID: -1, Size: sys.size, LogicalBlock: sys.unit, VolatileCache: true, FUA: true, NoPartScan: true}, d)
	must(t, err)
	defer func() {
		if err := dev.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	must(t, dev.Start(t.Context()))
	path := dev.Path()
	must(t, tool.Run(sys.mkfs[0], append(sys.mkfs[1:], path)...))
	dir := t.TempDir()
	must(t, unix.Mount(path, dir, sys.name, 0, sys.mount))
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	memory := t.TempDir()
	must(t, unix.Mount("none", memory, "tmpfs", 0, "size=2g"))
	defer syscall.Unmount(memory, syscall.MNT_DETACH)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	seen := 0
	for round := range rounds {
		c := &cutting{sys: sys, disk: d, dir: dir, file: filepath.Join(memory, "cut"), rng: rand.New(rand.NewPCG(seed, uint64(round))), model: newModel(uint64(round+1), 256*clusterBlocks)}
		if err := c.round(t, round%2 == 1); err != nil {
			wrong = append(wrong, fmt.Errorf("round %d: %w", round, err))
		}
		seen += c.seen
	}
	if seen == 0 {
		t.Error("no cut has left anything of an image")
	}
	must(t, syscall.Unmount(dir, 0))
	return wrong
}

// cutting is a round.
type cutting struct {
	sys   *system
	disk  *disk
	dir   string // where the file system is mounted
	file  string // what a cut leaves
	rng   *rand.Rand
	model *model
	piece int // what isn't torn of what was under way: see round
	seen  int // pieces that a cut has left with something in them
}

// round makes an image, works on it, cuts the power in the middle and looks at what is left.
func (c *cutting) round(t *testing.T, cached bool) error {
	image := filepath.Join(c.dir, "image")
	must(t, ploop.Create(image, ploop.CreateOptions{Size: int64(len(c.model.history)) * block, ClusterSize: clusterBlocks * block}))
	s, err := stack.Open([]ploop.ImageRef{{Path: image}}, stack.Options{NoDirect: cached})
	must(t, err)
	// Of a page that is written to while the file system writes it out, the disk gets whatever there is at the moment
	// (no stable pages): parts of a sector may be older than others, but no word of eight bytes.
	if c.piece = sector; cached {
		c.piece = 8
	}
	var group sync.WaitGroup
	left := make(chan struct{})
	errs := make([]error, 4)
	for k := range errs {
		rng := rand.New(rand.NewPCG(c.rng.Uint64(), uint64(k)))
		group.Go(func() {
			for n := 0; errs[k] == nil; n++ {
				select {
				case <-left:
					return
				default:
				}
				switch p := rng.IntN(100); {
				case p < 3:
					errs[k] = c.model.flush(s)
				case p < 5:
					errs[k] = c.model.discard(s, rng)
				default:
					errs[k] = c.model.write(s, rng)
				}
			}
		})
	}
	// Soon after the first growth of the file, or at any time.
	for enough := 1 + c.rng.IntN([]int{15, 300}[c.rng.IntN(2)]); c.progress() < enough; {
		time.Sleep(time.Millisecond)
	}
	// What is flushed when the power goes is known before it goes, and what was begun afterwards.
	legal := c.model.legal()
	wrong := c.disk.cut(c.rng, c.file, c.sys.unit)
	legal = join(legal, c.model.legal())
	close(left)
	group.Wait()
	if err := errors.Join(append(errs, wrong)...); err != nil {
		t.Fatal(err)
	}
	must(t, s.Close())
	must(t, os.Remove(image))
	return c.verify(t, legal)
}

// progress is how many versions were begun.
func (c *cutting) progress() int {
	c.model.mu.Lock()
	defer c.model.mu.Unlock()
	return int(c.model.next)
}

// join is what is legal before or after.
func join(before, after [][]uint64) [][]uint64 {
	for i := range before {
		for _, v := range after[i] {
			if !slices.Contains(before[i], v) {
				before[i] = append(before[i], v)
			}
		}
	}
	return before
}

// verify mounts what the cut left and looks at the image.
func (c *cutting) verify(t *testing.T, legal [][]uint64) error {
	loop, err := tool.Output("losetup", "-f", "--show", "-b", strconv.Itoa(c.sys.unit), c.file)
	must(t, err)
	defer tool.Run("losetup", "-d", loop)
	dir := t.TempDir()
	if err := unix.Mount(loop, dir, c.sys.name, 0, c.sys.again); err != nil {
		t.Fatalf("what the cut left can't be mounted, which is the file system's fault or that of the test's disk: %v", err)
	}
	defer syscall.Unmount(dir, 0)
	refs := []ploop.ImageRef{{Path: filepath.Join(dir, "image")}}
	r, err := ploop.Check(refs, ploop.CheckOptions{})
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	for _, f := range r.Images[0].Findings {
		if f.Kind != ploop.FindingLeak && f.Kind != ploop.FindingInUse {
			return errors.New(f.Message)
		}
	}
	s, err := stack.Open(refs, stack.Options{TakeOver: true})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer s.Close()
	p := ploop.AlignedBuffer(block)
	for i, want := range legal {
		if _, err := s.ReadAt(p, int64(i)*block); err != nil {
			return err
		}
		for at := 0; at < block; at += c.piece {
			v, ok := c.model.version(p[at:][:c.piece], i)
			if !ok || !slices.Contains(want, v) {
				return fmt.Errorf("what is at %d of block %d (cluster %d) is version %d (%t) %x, legal are %v", at, i, i/clusterBlocks, v, ok, p[at:][:8], want)
			}
			if v != 0 {
				c.seen++
			}
		}
	}
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
