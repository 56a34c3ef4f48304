package device

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/ploop/stack"
)

// TestFileSystems makes ext4 and xfs on stacks of 1, 2 and 64 deltas, writes a
// tree, gives space back, and has fsck and a fresh mount agree.
func TestFileSystems(t *testing.T) {
	ctl := openControl(t)
	for _, path := range dataPathsOf(t, ctl) {
		for i, c := range []struct {
			fs              string
			deltas, version int
			cluster         int64
		}{
			{"ext4", 1, 2, 1 << 20}, {"xfs", 2, 2, 256 << 10},
			{"xfs", 1, 1, 1 << 20}, {"ext4", 64, 2, 64 << 10},
			{"ext4", 2, 1, 63 << 9}, // the historic 63 sectors: never the fast way for requests over a border
		} {
			if testing.Short() && (i > 1 || onOtherKernel(i)) {
				continue // to save time
			}
			t.Run(fmt.Sprintf("%s/%s/%d deltas/v%d/%d", path, c.fs, c.deltas, c.version, c.cluster), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				refs := makeStack(t, dir, c.deltas, c.version, 320<<20, c.cluster)
				d := serve(t, ctl, api.Spec{Name: "fs", Images: refs, DataPath: path})
				mkfs := []string{"-q", d.Path()}
				check := []string{"xfs_repair", "-n", d.Path()}
				if c.fs == "ext4" {
					check = []string{"e2fsck", "-fn", d.Path()}
				}
				run(t, "mkfs."+c.fs, mkfs...)
				mnt := filepath.Join(dir, "mnt")
				if err := os.Mkdir(mnt, 0o755); err != nil {
					t.Fatal(err)
				}
				run(t, "mount", d.Path(), mnt)
				t.Cleanup(func() { unix.Unmount(mnt, 0) })
				run(t, "sh", "-c", `set -e; cd "$0"; for i in $(seq 30); do mkdir -p d$((i%9)); head -c $((i*15000)) /dev/urandom >d$((i%9))/f$i; done
					find . -name 'f*' | sort | xargs sha256sum >../sums; mkdir gone; dd if=/dev/zero of=gone/a bs=1M count=8 2>/dev/null; dd if=/dev/urandom of=gone/b bs=1M count=8 2>/dev/null; sync`, mnt)
				before := d.Status().Allocated
				run(t, "rm", "-r", mnt+"/gone")
				// xfs frees the space of deleted files in its own time.
				gaveBack := false
				for try := 0; try < 30 && !gaveBack; try++ {
					run(t, "sh", "-c", `sync; fstrim "$0"`, mnt)
					if gaveBack = c.deltas > 1 || d.Status().Allocated < before; !gaveBack {
						time.Sleep(300 * time.Millisecond)
					}
				}
				if !gaveBack {
					t.Errorf("fstrim gave nothing back of %d clusters", before)
				}
				if err := d.Close(t.Context(), false); err != ErrBusy {
					t.Errorf("closing a mounted device: %v, want ErrBusy", err)
				}
				run(t, "umount", mnt)
				run(t, check[0], check[1:]...)
				run(t, "mount", d.Path(), mnt)
				run(t, "sh", "-c", `cd "$0" && sha256sum --quiet -c ../sums`, mnt)
				run(t, "umount", mnt)
				if err := d.Close(t.Context(), false); err != nil {
					t.Fatal(err)
				}
				checkClean(t, refs)
			})
		}
	}
}

// TestRawBase serves a raw file by itself and under a delta.
func TestRawBase(t *testing.T) {
	sharedOut(t, 1)
	ctl := openControl(t)
	dir := t.TempDir()
	raw := filepath.Join(dir, "raw")
	content := make([]byte, 24<<20+512*3) // the end is within a cluster
	for i := range content {
		content[i] = byte(i >> 9)
	}
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	refs := []ploop.ImageRef{{Path: raw, Raw: true}}
	want := hash(t, raw)
	d := serve(t, ctl, api.Spec{Name: "raw", Images: refs})
	if got := hash(t, d.Path()); got != want {
		t.Error("the raw file alone reads differently")
	}
	run(t, "dd", "if=/dev/urandom", "of="+d.Path(), "bs=1M", "seek=3", "count=2", "oflag=direct", "conv=fsync")
	want = hash(t, d.Path())
	if err := d.Close(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if got := hash(t, raw); got != want {
		t.Error("what was written through the device isn't in the raw file")
	}
	top := filepath.Join(dir, "top")
	if err := ploop.Create(top, ploop.CreateOptions{Backing: &refs[0]}); err != nil {
		t.Fatal(err)
	}
	d = serve(t, ctl, api.Spec{Name: "raw", Images: append(refs, ploop.ImageRef{Path: top})})
	if got := hashPrefix(t, d.Path(), int64(len(content))); got != want {
		t.Error("the raw base under a delta reads differently")
	}
	run(t, "dd", "if=/dev/urandom", "of="+d.Path(), "bs=4k", "seek=100", "count=3", "oflag=direct", "conv=fsync")
	if got := hash(t, raw); got != want {
		t.Error("a write through the delta changed the base")
	}
}

// TestReadOnly refuses writes and leaves the image's bytes alone.
func TestReadOnly(t *testing.T) {
	ctl := openControl(t)
	refs := makeStack(t, t.TempDir(), 2, 2, 8<<20, 1<<20)
	before := hash(t, refs[1].Path)
	d := serve(t, ctl, api.Spec{Name: "ro", Images: refs, ReadOnly: true})
	if fd, err := unix.Open(d.Path(), unix.O_WRONLY, 0); err == nil {
		_, err = unix.Write(fd, make([]byte, 4096))
		unix.Close(fd)
		if err == nil {
			t.Error("a write to a read-only device succeeded")
		}
	}
	hash(t, d.Path())
	if err := d.Close(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if hash(t, refs[1].Path) != before {
		t.Error("the image of a read-only device changed")
	}
}

// TestTruncated cuts the image's file behind the device's back: what is gone is
// an error to the reader, never zeroes.
func TestTruncated(t *testing.T) {
	ctl := openControl(t)
	for _, path := range dataPathsOf(t, ctl) {
		t.Run(path, func(t *testing.T) {
			refs := makeStack(t, t.TempDir(), 1, 2, 4<<20, 1<<20)
			d := serve(t, ctl, api.Spec{Name: "cut", Images: refs, DataPath: path})
			run(t, "dd", "if=/dev/urandom", "of="+d.Path(), "bs=1M", "count=4", "oflag=direct")
			if err := os.Truncate(refs[0].Path, 3<<20+512); err != nil {
				t.Fatal(err)
			}
			fd, err := unix.Open(d.Path(), unix.O_RDONLY|unix.O_DIRECT, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			failed := 0
			for off := int64(0); off < 4<<20; off += 256 << 10 {
				if _, err := unix.Pread(fd, ploop.AlignedBuffer(256<<10), off); err == unix.EIO {
					failed++
				} else if err != nil {
					t.Fatal(err)
				}
			}
			// Of the file's four clusters behind the header two are whole,
			// whichever of the disk's they are.
			if failed != 8 {
				t.Errorf("%d of 16 reads failed, want the 8 of the lost half", failed)
			}
			if err := d.Close(t.Context(), true); !errors.Is(err, stack.ErrTruncated) {
				t.Errorf("closing: %v", err)
			}
		})
	}
}

// TestNoSpace fills the file system under an image: writes wait, are reported,
// and go on when space comes back; a removal by force fails them instead.
func TestNoSpace(t *testing.T) {
	sharedOut(t, 0)
	defer func(was time.Duration) { longestPause = was }(longestPause)
	longestPause = 2 * time.Second
	ctl := openControl(t)
	dir := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "-o", "size=24m", "none", dir)
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 12<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	refs := makeStack(t, dir, 1, 2, 20<<20, 1<<20)
	var parked atomic.Int64
	d, err := Open(t.Context(), api.Spec{Name: "full", Images: refs}, Options{Control: ctl, Event: func(e api.Event) {
		if e.Kind == "parked" {
			parked.Add(1)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close(t.Context(), true)
	done := make(chan string, 1)
	go func() {
		out, err := os.CreateTemp("", "dd")
		if err != nil {
			done <- err.Error()
			return
		}
		defer os.Remove(out.Name())
		done <- run(t, "dd", "if=/dev/urandom", "of="+d.Path(), "bs=256k", "count=80", "oflag=direct", "conv=fsync")
	}()
	for d.Status().Counters.Parked == 0 {
		select {
		case s := <-done:
			t.Fatalf("20 MiB were written where 12 are free: %s", s)
		case <-time.After(50 * time.Millisecond):
		}
	}
	for parked.Load() == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	if st := d.Status(); st.State != "parked" {
		t.Errorf("state %q while %d requests wait", st.State, st.Counters.Parked)
	}
	// Reads are served meanwhile.
	run(t, "dd", "if="+d.Path(), "of=/dev/null", "bs=1M", "count=1", "iflag=direct")
	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	if s := <-done; strings.Contains(s, "error") {
		t.Fatal(s)
	}
	if n := d.Status().Counters.Errors; n != 0 {
		t.Errorf("%d requests failed", n)
	}
	if err := d.Close(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	checkClean(t, refs)
}

// TestNoAllocation counts the Go heap's allocations over many fast requests.
func TestNoAllocation(t *testing.T) {
	ctl := openControl(t)
	many := 20000
	if testing.Short() {
		many = 10000
	}
	for _, path := range dataPathsOf(t, ctl) {
		t.Run(path, func(t *testing.T) {
			refs := makeStack(t, t.TempDir(), 1, 2, 32<<20, 1<<20)
			d := serve(t, ctl, api.Spec{Name: "alloc", Images: refs, DataPath: path, Queues: 1})
			run(t, "dd", "if=/dev/urandom", "of="+d.Path(), "bs=1M", "count=32", "oflag=direct")
			job := func(ios int) {
				run(t, "fio", "--name=a", "--filename="+d.Path(), "--ioengine=io_uring", "--direct=1", "--iodepth=16", "--bs=4k",
					"--rw=randrw", "--randrepeat=0", "--norandommap", fmt.Sprintf("--io_size=%d", ios*4096))
			}
			job(2000)
			before := d.Status().Counters
			var a, b runtime.MemStats
			runtime.ReadMemStats(&a)
			job(many)
			runtime.ReadMemStats(&b)
			after := d.Status().Counters
			n := after.Reads + after.Writes - before.Reads - before.Writes
			if n < uint64(many)*9/10 { // the block layer may merge neighbours
				t.Fatalf("only %d requests came", n)
			}
			if after.Slow != before.Slow {
				t.Errorf("%d requests took the slow way", after.Slow-before.Slow)
			}
			// Starting fio and reading its output allocates some by itself.
			per := float64(b.Mallocs-a.Mallocs) / float64(n)
			t.Logf("%d requests, %d allocations in the whole process: %.4f a request", n, b.Mallocs-a.Mallocs, per)
			if per > 0.05 {
				t.Errorf("%.3f allocations a request", per)
			}
		})
	}
}
