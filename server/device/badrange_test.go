package device

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/hack/faultfs"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/standby"
	"holdfast/ublk"
)

// TestErrorPlace: an error's place is a range of a file, and none where it is about the file.
func TestErrorPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "top")
	if err := ploop.Create(path, ploop.CreateOptions{Size: 8 << 20, ClusterSize: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	s, err := stack.Open([]ploop.ImageRef{{Path: path}}, stack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wrap := func(op, file string, off int64) error {
		return fmt.Errorf("it: %w", &ploop.IOError{Op: op, File: file, Offset: off, Err: unix.EIO})
	}
	for _, c := range []struct {
		err  error
		want standby.Place
	}{
		{wrap("read", path, 4096), standby.Place{Op: "read", Off: 4096, Len: 512}},
		{wrap("write index", path, 512), standby.Place{Op: "write index", Off: 512, Len: 512}},
		{wrap("sync", path, -1), standby.Place{}},
		{wrap("allocate", path, 4096), standby.Place{}},
		{wrap("truncate", path, 4096), standby.Place{}},
		{wrap("zero", path, 4096), standby.Place{}},
		{wrap("punch", path, 4096), standby.Place{}},
		{wrap("read", "/elsewhere", 4096), standby.Place{}},
		{unix.EIO, standby.Place{}},
		{nil, standby.Place{}},
	} {
		if got := errorPlace(s, c.err); got != c.want {
			t.Errorf("%v: %+v, want %+v", c.err, got, c.want)
		}
	}
	f := failedTransfer{level: 2, off: 8192, len: 4096}
	if p := f.place(ublk.OpRead); p != (standby.Place{Op: "read", Level: 2, Off: 8192, Len: 4096}) {
		t.Errorf("%+v", p)
	}
	if p := f.place(ublk.OpWrite); p.Op != "write" {
		t.Errorf("%+v", p)
	}
	if f.sync = true; f.place(ublk.OpFlush).Len != 0 {
		t.Error("a sync has a place")
	}
}

// TestReopeningGoesOn: intervals go on growing in a standby that follows another closely.
func TestReopeningGoesOn(t *testing.T) {
	a := newReopening(nil)
	for range 3 {
		a.delay()
	}
	if b := newReopening(a); b.delay() != 8*firstReopen {
		t.Errorf("the next waits for less than twice the last")
	}
	if b := newReopening(nil); b.delay() != firstReopen {
		t.Error("one by itself doesn't begin anew")
	}
	since := time.Unix(1000, 0)
	for spent, want := range map[time.Duration]time.Duration{0: 5 * time.Second, 2 * time.Second: 3 * time.Second, time.Hour: 0} {
		if got := deadline(&standby.Status{Since: since, Spent: spent}, 5*time.Second).Sub(since); got != want {
			t.Errorf("after %v its time is up in %v, want %v", spent, got, want)
		}
	}
}

// TestBadRange has one place of an image be unreadable, or unwritable: with one standby it is
// found out, its error goes to who asks for it, and everything else is served. Storage of which
// only the first page answers is lost, and no error of it is passed.
func TestBadRange(t *testing.T) {
	ctl := openControl(t)
	const bad = 3 // of the clusters, which are written in order
	place := faultfs.Rule{Path: "top", Off: (1 + bad) * clusterBlocks * blockSize, Len: blockSize, Errno: unix.EIO}
	read, write, data := place, place, place
	read.Op, write.Op = faultfs.Read, faultfs.Write
	data.Op, data.Off, data.Len = faultfs.Read, clusterBlocks*blockSize, 1<<40
	for i, path := range dataPathsOf(t, ctl) {
		for k, c := range []struct {
			name   string
			resume string
			rule   faultfs.Rule
			do     func(fd rawDisk) error
		}{
			{"read, reopen", api.ResumeReopen, read, func(fd rawDisk) error { return fd.expect(bad*clusterBlocks, 1) }},
			{"read, manual", api.ResumeManual, read, func(fd rawDisk) error { return fd.expect(bad*clusterBlocks, 1) }},
			{"write, reopen", api.ResumeReopen, write, func(fd rawDisk) error { return fd.write(bad*clusterBlocks, 2) }},
		} {
			if onOtherKernel(i + k) {
				continue
			}
			t.Run(path+"/"+c.name, func(t *testing.T) {
				f, w, fd := serveBad(t, ctl, api.Spec{Name: "bad", DataPath: path, Resume: c.resume})
				w.a.Add(c.rule)
				ended := make(chan error, 1)
				go func() { ended <- c.do(fd) }()
				if c.resume == api.ResumeManual {
					f.until("held", func(s api.Status) bool { return standbyOn(s) && s.Standby.Held == 1 })
					if err := f.Replace(t.Context(), Replace{Level: -1, Image: refs(w.a, "top")[0]}); err != nil {
						t.Fatal(err)
					}
				}
				if err := <-ended; !errors.Is(err, unix.EIO) {
					t.Fatalf("it ended with %v", err)
				}
				f.untilEvent(api.EventBadRange)
				for range 5 {
					if err := c.do(fd); !errors.Is(err, unix.EIO) {
						t.Errorf("again: %v", err)
					}
					for b := range uint64(8) {
						if b == bad {
							continue
						}
						if err := errors.Join(fd.expect(b*clusterBlocks, 1), fd.write(b*clusterBlocks, 1)); err != nil {
							t.Error(err)
						}
					}
				}
				s := f.Status()
				if s.State != api.StateLive || s.Standby.Entered != 1 || len(s.Standby.BadRanges) != 1 {
					t.Fatalf("%s, %+v", s.State, s.Standby)
				}
				if b := s.Standby.BadRanges[0]; b.Op != string(c.rule.Op) || b.Offset != c.rule.Off || b.Length != blockSize || b.Errno != "EIO" || b.File != s.Images[0].Path {
					t.Errorf("%+v", b)
				}
				w.a.Clear()
				if err := c.do(fd); err != nil {
					t.Errorf("when it is mended: %v", err)
				}
			})
		}
	}
	t.Run("lost", func(t *testing.T) {
		f, w, fd := serveBad(t, ctl, api.Spec{Name: "bad", Resume: api.ResumeReopen})
		w.a.Add(data)
		ended := make(chan error, 1)
		go func() { ended <- fd.expect(bad*clusterBlocks, 1) }()
		f.until("standby again and again", func(s api.Status) bool { return s.Standby.Entered >= 3 })
		select {
		case err := <-ended:
			t.Fatalf("a request ended with %v", err)
		default:
		}
		w.a.Clear()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if s := f.Status().Standby; len(s.BadRanges) != 0 {
			t.Errorf("%+v", s.BadRanges)
		}
	})
	t.Run("time-out", func(t *testing.T) {
		f, w, fd := serveBad(t, ctl, api.Spec{Name: "bad", Resume: api.ResumeReopen, StandbyTimeout: api.Duration(time.Second)})
		w.a.Add(data)
		if err := fd.expect(bad*clusterBlocks, 1); !errors.Is(err, unix.EIO) {
			t.Errorf("it ended with %v", err)
		}
		f.untilEvent(api.EventTimeout)
		if s := f.Status().Standby; s.Entered < 2 {
			t.Errorf("it timed out in the first of its standbys: %+v", s)
		}
		w.a.Clear()
	})
}

// serveBad serves an image of which the first clusters are written, in order.
func serveBad(t *testing.T, ctl *ublk.Control, spec api.Spec) (*standbyFixture, *twoMounts, rawDisk) {
	t.Helper()
	w := newTwoMounts(t, faultfs.Options{})
	if err := ploop.Create(filepath.Join(w.backing, "top"), ploop.CreateOptions{Size: 8 << 20, ClusterSize: clusterBlocks * blockSize}); err != nil {
		t.Fatal(err)
	}
	spec.Images, spec.Queues = refs(w.a, "top"), 1
	f := serveStandby(t, ctl, spec).arm()
	fd := openDisk(t, f.Device)
	for b := range uint64(8) {
		if err := fd.write(b*clusterBlocks, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := fd.flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.a.Clear) // nothing of a test that fails waits for the rest of it
	return f, w, fd
}

// do has a request done, and begun anew after a resume each time that it was held, until it
// ends. It says how often it was held.
func (s *slowDevice) do(op ublk.Op, cluster int64, heldAtMost int) (errno unix.Errno, held int) {
	s.t.Helper()
	for {
		one := s.request(&fakeRequest{op: op, off: cluster * testCluster, n: 4096, fill: 1})
		s.tags--
		select {
		case errno = <-one.end:
			return errno, held
		case <-one.anew:
		}
		if held++; held == heldAtMost {
			return 0, held
		}
		if !s.machine.Reopened() {
			s.t.Fatal("held, and not in standby")
		}
	}
}

// TestSlowBadRange is TestBadRange without a driver, for the slow way.
func TestSlowBadRange(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts a file system")
	}
	w := newTwoMounts(t, faultfs.Options{})
	s := newSlowDevice(t, 4, testImageOn(t, w, 64))
	s.key.Enable("test")
	if err := s.Attach("test"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.a.Clear)
	for i := range int64(8) {
		if errno, _ := s.do(ublk.OpWrite, i, 1); errno != 0 {
			t.Fatal(errno)
		}
	}
	const bad = 3
	id := w.a.Add(faultfs.Rule{Op: faultfs.Read, Path: "image", Off: (1 + bad) * testCluster, Len: 4096, Errno: unix.EIO})
	if errno, held := s.do(ublk.OpRead, bad, 10); errno != unix.EIO || held != 1 {
		t.Errorf("%v, held %d times", errno, held)
	}
	for range 3 {
		if errno, held := s.do(ublk.OpRead, bad, 10); errno != unix.EIO || held != 0 {
			t.Errorf("again: %v, held %d times", errno, held)
		}
		for i := range int64(8) {
			if i == bad {
				continue
			}
			if errno, held := s.do(ublk.OpRead, i, 10); errno != 0 || held != 0 {
				t.Errorf("another place: %v, held %d times", errno, held)
			}
		}
	}
	if st := s.machine.Status(); st.Stats.Entered != 1 || len(st.Bad) != 1 {
		t.Errorf("entered %d times, %+v", st.Stats.Entered, st.Bad)
	}
	// When nothing of the file answers, the bad place's errors are held as well.
	all := w.a.Add(faultfs.Rule{Op: faultfs.Read, Path: "image", Off: testCluster, Len: 1 << 40, Errno: unix.EIO})
	for _, off := range []int64{bad, 5} {
		if errno, held := s.do(ublk.OpRead, off, 3); held != 3 {
			t.Errorf("of lost storage: %v, held %d times", errno, held)
		}
	}
	w.a.Remove(all)
	w.a.Remove(id)
	s.machine.Reopened()
	for i := range int64(8) {
		if errno, _ := s.do(ublk.OpRead, i, 10); errno != 0 {
			t.Errorf("at last: %v", errno)
		}
	}
}
