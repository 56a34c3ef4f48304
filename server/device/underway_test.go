package device

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/hack/faultfs"
	"holdfast/ploop"
	"holdfast/ublk"
)

// TestInquiry: one question is out at a time, who doesn't answer isn't waited for anew, and
// an answer that is fresh enough is taken.
func TestInquiry(t *testing.T) {
	var i inquiry[int]
	asked := 0
	var answer func()
	run := func(do func()) error { asked++; answer = do; return nil }
	one := func() *int { n := asked; return &n }
	first, sent := i.ask(run, one, 0)
	again, sentAgain := i.ask(run, one, 0)
	if asked != 1 || first != again || sent != sentAgain {
		t.Errorf("%d questions are out", asked)
	}
	if await(first, time.Now().Add(-time.Minute), time.Second) {
		t.Error("an answer that didn't come")
	}
	answer()
	if !await(first, time.Now().Add(-time.Minute), time.Second) || *i.last.Load() != 1 {
		t.Error("an answer that came is not taken")
	}
	if _, s := i.ask(run, one, time.Hour); asked != 1 || s != sent {
		t.Error("a fresh answer is asked for again")
	}
	if done, _ := i.ask(run, one, 0); asked != 2 || done == first {
		t.Error("an old answer is not asked for again")
	}
	answer()
	if done, _ := i.ask(func(func()) error { return unix.ESHUTDOWN }, one, 0); done != nil {
		t.Error("who can't be asked is waited for")
	}
}

// TestOldestRequest: ages are whole seconds, and never more than the true ones.
func TestOldestRequest(t *testing.T) {
	images := []api.ImageStatus{{Path: "/base"}, {Path: "/top", Level: 1}}
	for _, c := range []struct{ came, now, want uint32 }{{5, 4, 0}, {5, 5, 0}, {5, 6, 0}, {5, 7, 1}, {0, 11, 10}} {
		if got := (&sighting{came: c.came}).age(c.now); got != float64(c.want) {
			t.Errorf("came at %d: %v at %d, want %d", c.came, got, c.now, c.want)
		}
	}
	if oldestRequest(nil, 5, images) != nil || (*sighting)(nil).age(5) != 0 {
		t.Error("one is under way")
	}
	o := oldestRequest(&sighting{came: 1, at: api.AtTransfer, op: ublk.OpWrite, offset: 4096, len: 512, level: 1, fileOffset: 8192}, 4, images)
	if o.Op != "write" || o.Offset != 4096 || o.Length != 512 || o.File != "/top" || *o.Level != 1 || *o.FileOffset != 8192 || o.Seconds != 2 {
		t.Errorf("%+v", o)
	}
	o = oldestRequest(&sighting{at: api.AtStorage, op: ublk.OpFlush, offset: -512}, 4, images)
	if o.Op != "flush" || o.Offset != 0 || o.File != "" || o.Level != nil {
		t.Errorf("%+v", o)
	}
	var s survey
	s.add(&survey{underWay: &sighting{came: 3}, held: &sighting{came: 9}})
	s.add(&survey{underWay: &sighting{came: 2}, late: &sighting{came: 1}})
	if s.underWay.came != 2 || s.held.came != 9 || s.late.came != 1 || s.parked != nil {
		t.Errorf("%+v", s)
	}
}

// TestDisplaced: a file that was renamed, deleted or written over by another is told apart
// from the one that is served.
func TestDisplaced(t *testing.T) {
	dir := t.TempDir()
	path := func(n string) string { return filepath.Join(dir, n) }
	put := func(n string) {
		t.Helper()
		if err := os.WriteFile(path(n), []byte(n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("a")
	put("b")
	if err := os.Symlink(path("a"), path("link")); err != nil {
		t.Fatal(err)
	}
	image := func(level int, at, file string) api.ImageStatus {
		var st unix.Stat_t
		if err := unix.Stat(path(file), &st); err != nil {
			t.Fatal(err)
		}
		return api.ImageStatus{Path: path(at), Level: level, Dev: st.Dev, Ino: st.Ino}
	}
	images := []api.ImageStatus{image(0, "a", "a"), image(1, "link", "a"), image(2, "b", "b")}
	d := new(Device)
	is := func(want ...string) {
		t.Helper()
		var got []string
		for _, w := range d.paths.displaced(images) {
			got = append(got, w.How)
			if s := w.String(); !strings.Contains(s, w.Path) {
				t.Errorf("%q doesn't say which", s)
			}
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%v, want %v", got, want)
		}
	}
	is()
	if err := os.Rename(path("a"), path("elsewhere")); err != nil {
		t.Fatal(err)
	}
	d = new(Device) // what is known stays so for a second
	is(api.PathGone, api.PathGone)
	put("a")
	if err := os.Remove(path("b")); err != nil {
		t.Fatal(err)
	}
	d = new(Device)
	is(api.PathOther, api.PathOther, api.PathGone)
	images = []api.ImageStatus{image(0, "a", "a"), image(1, "a", "a")} // replaced: asked anew at once
	is()
	images[0].Path = path("a/b")
	is(api.PathGone)
	images[0].Path = path(strings.Repeat("x", 300))
	is(api.PathError)
}

// TestHungIsShown has requests hang in the storage on the fast and the slow path: the device
// says so, at once, where they hang, and what else waits, and that they are back. An image
// whose path hangs or leads elsewhere is told of, too.
func TestHungIsShown(t *testing.T) {
	defer func(was time.Duration) { hungAfter = was }(hungAfter)
	hungAfter = time.Second
	ctl := openControl(t)
	for _, path := range dataPathsOf(t, ctl) {
		for i, c := range []struct {
			name string
			rule faultfs.Rule
			do   func(fd rawDisk) error
			op   string
			at   string
		}{
			{"read", faultfs.Rule{Op: faultfs.Read, Path: "top", Off: 64 << 10, Len: 1 << 30}, func(fd rawDisk) error { return fd.expect(3, 1) }, "read", api.AtTransfer},
			{"write", faultfs.Rule{Op: faultfs.Write, Path: "top"}, func(fd rawDisk) error { return fd.write(3, 1) }, "write", api.AtTransfer},
			{"flush", faultfs.Rule{Op: faultfs.Fsync, Path: "top"}, func(fd rawDisk) error {
				return errors.Join(fd.write(3, 1), fd.flush())
			}, "flush", api.AtTransfer},
			{"allocation", faultfs.Rule{Op: faultfs.Write, Path: "top"}, func(fd rawDisk) error { return fd.write(3*clusterBlocks, 1) }, "write", api.AtStorage},
		} {
			if onOtherKernel(i) {
				continue
			}
			t.Run(path+"/"+c.name, func(t *testing.T) { testHung(t, ctl, path, c.rule, c.do, c.op, c.at) })
		}
	}
}

func testHung(t *testing.T, ctl *ublk.Control, path string, rule faultfs.Rule, do func(rawDisk) error, op, at string) {
	w := newTwoMounts(t, faultfs.Options{})
	top := filepath.Join(w.backing, "top")
	if err := ploop.Create(top, ploop.CreateOptions{Size: 8 << 20, ClusterSize: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	f := serveStandby(t, ctl, api.Spec{Name: "hung", Images: refs(w.a, "top"), DataPath: path, Queues: 1}).arm()
	fd := openDisk(t, f.Device)
	if err := errors.Join(fd.write(3, 1), fd.flush()); err != nil {
		t.Fatal(err)
	}
	if s := f.Status(); s.State != api.StateLive || s.Oldest != nil || len(s.Displaced) != 0 {
		t.Fatalf("%s, %+v, %+v", s.State, s.Oldest, s.Displaced)
	}
	// What is held is counted apart.
	if err := f.SetStandby(true); err != nil {
		t.Fatal(err)
	}
	held := make(chan error, 1)
	go func() { held <- fd.expect(100, 0) }()
	f.until("held", func(s api.Status) bool {
		return s.State == api.StateStandby && s.Standby.HeldSeconds >= 1 && s.Oldest == nil
	})
	if err := f.Replace(t.Context(), Replace{Level: -1, Image: refs(w.a, "top")[0]}); err != nil {
		t.Fatal(err)
	}
	if err := <-held; err != nil {
		t.Error(err)
	}
	rule.Hang = true
	id := w.a.Add(rule)
	t.Cleanup(w.a.Clear)
	hung := make(chan error, 1)
	go func() { hung <- do(fd) }()
	f.until("hung", func(s api.Status) bool { return s.State == api.StateHung })
	s := f.Status()
	if o := s.Oldest; o == nil || o.Op != op || o.At != at || o.Seconds < 1 || op != "flush" && o.Length != blockSize || s.Since != o.Since {
		t.Errorf("%+v, since %v", o, s.Since)
	} else if at == api.AtTransfer && (o.File != f.Spec().Images[0].Path || *o.Level != 0 || (*o.FileOffset < 0) != (op == "flush")) {
		t.Errorf("%+v, level %d, offset %d", o, *o.Level, *o.FileOffset)
	}
	if s.Counters.InFlight != 1 || s.Standby.Held != 0 || s.Standby.Flag {
		t.Errorf("%+v, %+v", s.Counters, s.Standby)
	}
	// A forced replacement leaves it behind: what hangs there makes nothing of the new one hung.
	if err := f.Replace(t.Context(), Replace{Level: -1, Image: refs(w.b, "top")[0], Drain: 50 * time.Millisecond, Force: true}); err != nil {
		t.Fatal(err)
	}
	f.until("served", func(s api.Status) bool {
		return s.State == api.StateLive && s.Oldest == nil && s.Standby.Stuck == 1 && s.Standby.StuckSeconds >= 1
	})
	w.a.Remove(id)
	if err := <-hung; err != nil {
		t.Errorf("what hung: %v", err)
	}
	f.until("back", func(s api.Status) bool { return s.Counters.InFlight == 0 && s.Standby.StuckSeconds == 0 })
	// The image's path hangs, and then leads elsewhere.
	id = w.b.Add(faultfs.Rule{Op: faultfs.Lookup, Hang: true})
	if err := os.Rename(top, top+".moved"); err != nil {
		t.Fatal(err)
	}
	f.until("a path that hangs", func(s api.Status) bool { return len(s.Displaced) == 1 && s.Displaced[0].How == api.PathSilent })
	w.b.Remove(id)
	f.until("a file that was renamed", func(s api.Status) bool { return len(s.Displaced) == 1 && s.Displaced[0].How == api.PathGone })
	if err := os.Rename(top+".moved", top); err != nil {
		t.Fatal(err)
	}
	f.until("all in place", func(s api.Status) bool { return len(s.Displaced) == 0 })
}
