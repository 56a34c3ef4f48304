package device

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop"
)

// TestBlockSizes serves disks by sectors and by larger blocks, from storage that has blocks of
// 4096 bytes, of which smaller requests change a part.
func TestBlockSizes(t *testing.T) {
	ctl := openControl(t)
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	run(t, "truncate", "-s", "96M", disk)
	loop := strings.TrimSpace(run(t, "losetup", "--sector-size", "4096", "--find", "--show", disk))
	t.Cleanup(func() { run(t, "losetup", "-d", loop) })
	run(t, "mkfs.ext4", "-q", loop)
	run(t, "mount", loop, dir)
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	for i, c := range []struct{ logical, want int }{{0, 512}, {4096, 4096}} {
		refs := []ploop.ImageRef{{Path: filepath.Join(dir, fmt.Sprint("img", i))}}
		if err := ploop.Create(refs[0].Path, ploop.CreateOptions{Size: 8 << 20, ClusterSize: 256 << 10}); err != nil {
			t.Fatal(err)
		}
		d := serve(t, ctl, api.Spec{Name: "blocks", Images: refs, LogicalBlockSize: c.logical})
		for name, want := range map[string]int{"logical_block_size": c.want, "physical_block_size": 4096, "discard_granularity": 256 << 10} {
			if got := queueAttr(t, d, name); got != fmt.Sprint(want) {
				t.Errorf("%s is %s, want %d", name, got, want)
			}
		}
		if st := d.Status(); st.LogicalBlock != c.want || !st.Images[0].Direct || st.Images[0].Cached {
			t.Errorf("status: blocks of %d, %+v", st.LogicalBlock, st.Images[0])
		}
		fd, rng := int(openDisk(t, d)), rand.New(rand.NewPCG(1, uint64(i)))
		model, got := make([]byte, 8<<20), ploop.AlignedBuffer(8<<20)
		for range 150 {
			n := (1 + rng.IntN(24)) * c.want
			off := rng.IntN((len(model)-n)/c.want) * c.want
			p := ploop.AlignedBuffer(n)
			for j := range p {
				p[j] = byte(rng.Uint32())
			}
			if _, err := unix.Pwrite(fd, p, int64(off)); err != nil {
				t.Fatalf("write of %d at %d: %v", n, off, err)
			}
			copy(model[off:], p)
		}
		if n, err := unix.Pread(fd, got, 0); err != nil || n != len(got) || !bytes.Equal(got, model) {
			t.Errorf("blocks of %d: the disk reads otherwise (%d, %v)", c.want, n, err)
		}
		if _, err := unix.Pread(fd, ploop.AlignedBuffer(4096)[:512], 512); (err == nil) != (c.want == 512) {
			t.Errorf("blocks of %d: a sector alone: %v", c.want, err)
		}
		if e := d.Status().Counters.Errors; e != 0 {
			t.Errorf("%d errors", e)
		}
		if err := d.Close(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		checkClean(t, refs)
	}
	odd := filepath.Join(dir, "odd")
	if err := ploop.Create(odd, ploop.CreateOptions{Size: 8<<20 + 512}); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), api.Spec{Name: "odd", Images: []ploop.ImageRef{{Path: odd}}, LogicalBlockSize: 4096}, Options{Control: ctl})
	if !errors.Is(err, ploop.ErrGeometry) {
		t.Errorf("a disk of odd size in blocks of 4096: %v", err)
	}
}

// TestNoDiscard: storage that can't take space back isn't asked to.
func TestNoDiscard(t *testing.T) {
	ctl := openControl(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	for _, raw := range []bool{false, true} {
		ref := ploop.ImageRef{Path: filepath.Join(dir, fmt.Sprint("img", raw)), Raw: raw}
		err := os.WriteFile(ref.Path, make([]byte, 8<<20), 0o600)
		if !raw {
			os.Remove(ref.Path)
			err = ploop.Create(ref.Path, ploop.CreateOptions{Size: 8 << 20, ClusterSize: 256 << 10})
		}
		if err != nil {
			t.Fatal(err)
		}
		d := serve(t, ctl, api.Spec{Name: "hints", Images: []ploop.ImageRef{ref}})
		if g, most := queueAttr(t, d, "discard_granularity"), queueAttr(t, d, "discard_max_bytes"); most != "0" {
			t.Errorf("raw %v: discards of up to %s are offered, by %s", raw, most, g)
		}
		// Zeroes are no hint.
		run(t, "dd", "if=/dev/urandom", "of="+d.Path(), "bs=1M", "count=2", "oflag=direct", "status=none")
		run(t, "blkdiscard", "-z", d.Path())
		run(t, "cmp", "-n", "8388608", d.Path(), "/dev/zero")
		if err := d.Close(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
}

func queueAttr(t *testing.T, d *Device, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(d.Path()), "queue", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestGranularity(t *testing.T) {
	for _, c := range []struct{ unit, block, want int }{{0, 512, 0}, {0, 4096, 0}, {512, 4096, 4096}, {1 << 20, 4096, 1 << 20}, {63 << 9, 4096, 63 << 12}, {63 << 9, 512, 63 << 9}} {
		if got := granularity(int64(c.unit), c.block); got != c.want {
			t.Errorf("%d in blocks of %d: %d, want %d", c.unit, c.block, got, c.want)
		}
	}
}
