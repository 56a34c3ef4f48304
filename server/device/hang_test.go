package device

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/hack/faultfs"
	"holdfast/ploop"
	"holdfast/ublk"
)

// TestHungStorage has requests hang in storage without an error. A replacement waits for
// them as long as it is told, and goes on: others are served, and those that hung are done
// anew on the new top when they have come back, whatever came of them there.
func TestHungStorage(t *testing.T) {
	ctl := openControl(t)
	// More than the threads that the kernel would have waiting for one ring.
	const hung = 24
	for _, path := range dataPathsOf(t, ctl) {
		for i, c := range []struct {
			name  string
			async bool   // the storage takes I/O without a thread waiting
			land  bool   // what hung is carried out at last
			top   string // the new one
		}{
			{"drop", false, false, "top"}, {"land", false, true, "top"}, {"copy", false, true, "copy"},
			{"async drop", true, false, "top"}, {"async land", true, true, "top"},
		} {
			if onOtherKernel(i) {
				continue
			}
			t.Run(path+"/"+c.name, func(t *testing.T) {
				w := newTwoMounts(t, faultfs.Options{AsyncIO: c.async})
				back := func(name string) string { return filepath.Join(w.backing, name) }
				if err := ploop.Create(back("top"), ploop.CreateOptions{Size: 8 << 20, ClusterSize: 64 << 10}); err != nil {
					t.Fatal(err)
				}
				f := serveStandby(t, ctl, api.Spec{Name: "hung", Images: refs(w.a, "top"), DataPath: path, Queues: 1, Depth: 64}).arm()
				fd := openDisk(t, f.Device)
				for b := range uint64(2 * hung) {
					if err := fd.write(b*clusterBlocks/2, 1); err != nil {
						t.Fatal(err)
					}
				}
				if err := fd.flush(); err != nil {
					t.Fatal(err)
				}
				id := w.a.Add(faultfs.Rule{Op: faultfs.Write, Path: "top", Times: hung, Hang: true})
				a := newAIO(t, fd, hung)
				t.Cleanup(w.a.Clear) // nothing of a test that fails waits for the rest of it
				for b := range uint64(hung) {
					a.submit(iocbWrite, b*clusterBlocks/2, 2)
				}
				// Those for which the kernel has no thread yet don't reach the storage.
				eventually(t, "something hangs", func() bool { return w.a.Rule(id).Hanging > 0 })
				time.Sleep(100 * time.Millisecond)
				if c.top == "copy" {
					if err := copyFile(back("top"), back("copy")); err != nil {
						t.Fatal(err)
					}
				}
				// The lock that is had by this mount tells nothing of the other.
				if err := f.Replace(t.Context(), Replace{Level: -1, Image: refs(w.b, c.top)[0], Force: true, Drain: 200 * time.Millisecond}); err != nil {
					t.Fatal(err)
				}
				hanging := w.a.Rule(id).Hanging
				if s := f.Status(); s.Standby.Stuck == 0 || s.State != api.StateLive {
					t.Errorf("after the replacement, with %d hanging: %s, %+v", hanging, s.State, s.Standby)
				}
				before := w.a.Counts()[faultfs.Write]
				for b := range uint64(hung) {
					b += hung
					if err := errors.Join(fd.expect(b*clusterBlocks/2, 1), fd.write(b*clusterBlocks/2, 3), fd.flush()); err != nil {
						t.Fatalf("another request: %v", err)
					}
				}
				if n := a.ended(); n < hanging {
					t.Errorf("%d hang, and %d have ended", hanging, hung-n)
				}
				if c.land {
					w.a.Remove(id)
				} else {
					w.a.Drop(id, unix.EIO)
				}
				if n := a.all(); n != 0 {
					t.Errorf("%d of those that hung failed", n)
				}
				for b := range uint64(2 * hung) {
					if err := fd.expect(b*clusterBlocks/2, 2+b/hung); err != nil {
						t.Error(err)
					}
				}
				// What had not reached the old storage by then may still do so once.
				if n := w.a.Counts()[faultfs.Write] - before; n > hung-hanging {
					t.Errorf("%d writes more came to the old file", n)
				}
				if s := f.Status().Standby; s.Stuck != 0 || s.Entered != 0 {
					t.Errorf("%+v", s)
				}
				if err := f.Close(t.Context(), true); err != nil {
					t.Fatal(err)
				}
				checkClean(t, []ploop.ImageRef{{Path: back(c.top)}})
			})
		}
	}
}

// TestHungSync has the sync of a FUA write hang, and a FLUSH come meanwhile: it waits, and no
// second sync begins. When the top is replaced, it is done by the new one at once, while the
// first hangs still.
func TestHungSync(t *testing.T) {
	ctl := openControl(t)
	w := newTwoMounts(t, faultfs.Options{})
	back := filepath.Join(w.backing, "top")
	if err := ploop.Create(back, ploop.CreateOptions{Size: 8 << 20, ClusterSize: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	f := serve(t, ctl, api.Spec{Name: "sync", Images: refs(w.a, "top"), Queues: 1, Depth: 64})
	fd := openDisk(t, f)
	// The last one leaves an index that isn't known to be durable, so that a FUA write wants a
	// sync.
	if err := errors.Join(fd.write(0, 1), fd.flush(), fd.write(clusterBlocks, 1)); err != nil {
		t.Fatal(err)
	}
	before := w.a.Counts()[faultfs.Fsync]
	id := w.a.Add(faultfs.Rule{Op: faultfs.Fsync, Path: "top", Times: 1, Hang: true})
	t.Cleanup(w.a.Clear)
	a := newAIO(t, fd, 1)
	a.flags = unix.RWF_DSYNC
	a.submit(iocbWrite, 0, 2)
	eventually(t, "the sync hangs", func() bool { return w.a.Rule(id).Hanging == 1 })
	flushes := &f.queues[0].stats.ops[ublk.OpFlush]
	came := flushes.Load()
	flushed := make(chan error, 1)
	go func() { flushed <- fd.flush() }()
	eventually(t, "the flush comes", func() bool { return flushes.Load() > came })
	time.Sleep(100 * time.Millisecond) // for a second sync, if there is one
	if n := w.a.Counts()[faultfs.Fsync] - before; n != 1 {
		t.Errorf("%d syncs under way at once", n)
	}
	if len(flushed) != 0 || a.ended() != 1 {
		t.Error("acknowledged before the sync")
	}
	if err := f.Replace(t.Context(), Replace{Level: -1, Image: refs(w.b, "top")[0], Drain: 100 * time.Millisecond, Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := <-flushed; err != nil {
		t.Error(err)
	}
	if w.a.Rule(id).Hanging != 1 || a.ended() != 1 {
		t.Error("the first sync doesn't hang any more")
	}
	w.a.Remove(id)
	if n := a.all(); n != 0 {
		t.Errorf("%d writes failed", n)
	}
	if err := errors.Join(fd.expect(0, 2), fd.expect(clusterBlocks, 1)); err != nil {
		t.Error(err)
	}
	if err := f.Close(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	checkClean(t, []ploop.ImageRef{{Path: back}})
}

// TestHungStructure has a write of the index hang: where it might still land, the same
// file isn't taken, and the device is as it was.
func TestHungStructure(t *testing.T) {
	ctl := openControl(t)
	for _, way := range []string{"same", "other"} {
		t.Run(way, func(t *testing.T) {
			w := newTwoMounts(t, faultfs.Options{})
			if err := ploop.Create(filepath.Join(w.backing, "top"), ploop.CreateOptions{Size: 8 << 20, ClusterSize: 64 << 10}); err != nil {
				t.Fatal(err)
			}
			f := serveStandby(t, ctl, api.Spec{Name: "hung", Images: refs(w.a, "top"), Queues: 1}).arm()
			fd := openDisk(t, f.Device)
			if err := fd.write(0, 1); err != nil {
				t.Fatal(err)
			}
			id := w.a.Add(faultfs.Rule{Op: faultfs.Write, Path: "top", Len: 64 << 10, Times: 1, Hang: true})
			hung := make(chan error, 1)
			go func() { hung <- fd.write(clusterBlocks, 1) }()
			eventually(t, "the index hangs", func() bool { return w.a.Rule(id).Hanging == 1 })
			to := w.a
			if way == "other" {
				to = w.b
			}
			r := Replace{Level: -1, Image: refs(to, "top")[0], Drain: 100 * time.Millisecond}
			refused := f.Replace(t.Context(), r)
			if refused == nil {
				t.Error("the file was taken, and the write may still land")
			}
			// Linux 6.12 lets nothing more through to a file of which a write hangs.
			others := make(chan error, 1)
			go func() { others <- errors.Join(fd.expect(0, 1), fd.write(0, 2), fd.expect(0, 2)) }()
			w.a.Remove(id)
			if err := errors.Join(<-hung, <-others); err != nil {
				t.Errorf("after %v: %v", refused, err)
			}
			if err := f.Replace(t.Context(), r); err != nil {
				t.Error(err)
			}
			if err := errors.Join(fd.expect(0, 2), fd.expect(clusterBlocks, 1), fd.write(3*clusterBlocks, 1)); err != nil {
				t.Error(fmt.Errorf("on the new file: %w", err))
			}
		})
	}
}
