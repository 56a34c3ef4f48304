package kill

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/hack/tool"
	"holdfast/ploop"
)

// kept is a file that was written and synced, by its sum.
type kept map[string][sha256.Size]byte

// TestExt4: a file system on a device whose server is killed loses no file that was
// synced, and is whole.
func TestExt4(t *testing.T) {
	if onOtherKernel(0) {
		t.Skip("to save time: the other kernel's")
	}
	kills := count(t, "HOLDFAST_VARIANT_KILLS", 2)
	s := newServer(t, "--targets", "none")
	base := filepath.Join(t.TempDir(), "base.hds")
	top := filepath.Join(filepath.Dir(base), "top.hds")
	must(t, ploop.Create(base, ploop.CreateOptions{Size: 256 << 20, ClusterSize: 64 << 10}))
	disk := s.ok("create", "ext4", "--image", base)
	must(t, tool.Run("mkfs.ext4", "-q", disk))
	s.ok("remove", "ext4")
	must(t, ploop.Create(top, ploop.CreateOptions{Backing: &ploop.ImageRef{Path: base}}))
	disk = s.ok("create", "ext4", "--image", base, "--image", top)
	requeued, failed := countRequests(t, "block_rq_requeue", disk), countRequests(t, "block_rq_error", disk)
	dir := t.TempDir()
	must(t, syscall.Mount(disk, dir, "ext4", 0, "errors=remount-ro,discard"))
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })

	w := writeFiles(t, dir, 4)
	recovered := 0
	for range kills {
		w.advances(10)
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		s.kill()
		s.restart("ext4")
		recovered += s.recoveries("ext4")
	}
	w.advances(10)
	files, total := w.end()
	reissued := requeued.hits()
	t.Logf("%d kills, %d recoveries, %d requests reissued, %d failed; %d files written, %d kept", kills, recovered, reissued, failed.hits(), total, len(files))
	if recovered != kills || failed.hits() != 0 {
		t.Errorf("%d kills, %d recoveries, %d failed requests", kills, recovered, failed.hits())
	}

	must(t, syscall.Unmount(dir, 0))
	must(t, tool.Run("fsck.ext4", "-fn", disk))
	must(t, syscall.Mount(disk, dir, "ext4", syscall.MS_RDONLY, ""))
	for name, sum := range files {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || sha256.Sum256(text) != sum {
			t.Errorf("%s: %v, or not what was written", name, err)
		}
	}
	must(t, syscall.Unmount(dir, 0))
	s.ok("remove", "ext4")
	must(t, tool.Run(s.program, "image", "check", base, top))
}

// files is a load of a file system.
type files struct {
	t    *testing.T
	stop chan struct{}
	done sync.WaitGroup

	mu    sync.Mutex
	kept  kept
	total int
	err   error
}

// writeFiles has workers write, sync, rename, overwrite and delete files.
func writeFiles(t *testing.T, dir string, workers int) *files {
	w := &files{t: t, stop: make(chan struct{}), kept: kept{}}
	for k := range workers {
		w.done.Add(1)
		rng := rand.New(rand.NewPCG(uint64(k), 1))
		go func() {
			defer w.done.Done()
			for n := 0; ; n++ {
				select {
				case <-w.stop:
					return
				default:
				}
				if err := w.one(rng, dir, fmt.Sprintf("%d-%d", k, n%40)); err != nil {
					w.mu.Lock()
					w.err = err
					w.mu.Unlock()
					return
				}
			}
		}()
	}
	t.Cleanup(func() {
		select {
		case <-w.stop:
		default:
			close(w.stop)
		}
	})
	return w
}

func (w *files) one(rng *rand.Rand, dir, name string) error {
	path := filepath.Join(dir, name)
	if rng.IntN(4) == 0 {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
		w.mu.Lock()
		delete(w.kept, name)
		w.mu.Unlock()
	}
	text := make([]byte, 8+8*rng.IntN(32<<10))
	for i := 0; i < len(text); i += 8 {
		binary.NativeEndian.PutUint64(text[i:][:8:8], rng.Uint64())
	}
	f, err := os.Create(path + "~")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(path+"~", path); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept[name] = sha256.Sum256(text)
	w.total++
	return nil
}

// advances waits until so many more files have been written.
func (w *files) advances(n int) {
	w.t.Helper()
	state := func() (int, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.total, w.err
	}
	want, _ := state()
	want += n
	must(w.t, wait(2*time.Minute, func() error {
		total, err := state()
		must(w.t, err)
		if total < want {
			return fmt.Errorf("%d files were written, waiting for %d", total, want)
		}
		return nil
	}))
}

// end ends the load, and tells what there must be.
func (w *files) end() (kept, int) {
	w.t.Helper()
	close(w.stop)
	w.done.Wait()
	must(w.t, w.err)
	return w.kept, w.total
}
