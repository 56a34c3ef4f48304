package control

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/server/device"
	"holdfast/state"
	"holdfast/ublk"
)

var ctx = context.Background()

func TestCreateListRemove(t *testing.T) {
	f := newFixture(t)
	dev := f.create("vol", "base", "top")
	if dev.Path != "/dev/ublkb0" || dev.State != "live" || len(dev.Images) != 2 {
		t.Errorf("created %+v", dev)
	}
	rec, err := state.ReadRecord(f.d.records.Path("vol"))
	if err != nil || rec.ID != 0 || rec.BootID != state.BootID() || rec.PID != os.Getpid() {
		t.Errorf("record %+v, %v", rec, err)
	}
	_, err = f.c.Create(ctx, f.spec("vol", "other"))
	wantCode(t, err, api.CodeExists)
	got, err := f.c.Device(ctx, "vol")
	if err != nil || !reflect.DeepEqual(got, dev) {
		t.Errorf("show %+v, created %+v, %v", got, dev, err)
	}
	if err := f.c.Remove(ctx, "vol", false); err != nil {
		t.Fatal(err)
	}
	if len(f.recorded()) != 0 || len(f.states()) != 0 || len(f.k.live) != 0 || len(f.d.slots) != 0 {
		t.Errorf("after removal: records %v, states %v, live %v, slots %v", f.recorded(), f.states(), f.k.live, f.d.slots)
	}
	wantCode(t, f.c.Remove(ctx, "vol", true), api.CodeNotFound)
	_, err = f.c.Device(ctx, "vol")
	wantCode(t, err, api.CodeNotFound)
	if len(f.d.slots) != 0 {
		t.Errorf("questions left slots behind: %v", f.d.slots)
	}
}

func TestCreateRefused(t *testing.T) {
	f := newFixture(t)
	f.create("a", "base", "a.top")
	bad := func(name string, spec api.Spec, code api.Code, words ...string) {
		t.Helper()
		_, err := f.d.Create(ctx, spec)
		e := wantCode(t, err, code)
		for _, w := range words {
			if !strings.Contains(e.Message, w) {
				t.Errorf("%s: %q doesn't mention %q", name, e.Message, w)
			}
		}
		if got := f.recorded(); !slices.Equal(got, []string{"a"}) {
			t.Errorf("%s: records %v", name, got)
		}
	}
	bad("name", api.Spec{Name: "../x", Images: []ploop.ImageRef{f.image("b")}}, api.CodeInvalid)
	bad("no image", api.Spec{Name: "b"}, api.CodeInvalid)
	bad("relative", api.Spec{Name: "b", Images: []ploop.ImageRef{{Path: "b"}}}, api.CodeInvalid, "absolute")
	bad("bytes", api.Spec{Name: "b", Images: []ploop.ImageRef{{Path: "/\xff"}}}, api.CodeInvalid, "UTF-8")
	bad("missing", api.Spec{Name: "b", Images: []ploop.ImageRef{{Path: f.dir + "/none"}}}, api.CodeImage, "none")
	bad("written by another", f.spec("b", "a.top"), api.CodeConflict, "a.top", `"a"`)
	bad("another's base", f.spec("b", "base"), api.CodeConflict, "base", `"a"`)
	bad("on another's top", f.spec("b", "a.top", "b.top"), api.CodeConflict, "a.top")
	os.Symlink(filepath.Join(f.dir, "a.top"), filepath.Join(f.dir, "alias"))
	bad("under another name", f.spec("b", "alias"), api.CodeConflict, "alias")
	f.create("shared-base", "base", "b.top") // both only read the base
	ro := f.spec("reader", "base")
	ro.ReadOnly = true
	if _, err := f.d.Create(ctx, ro); err != nil {
		t.Errorf("two readers of one image: %v", err)
	}
}

func TestCreateFailureLeavesNothing(t *testing.T) {
	f := newFixture(t)
	for _, tt := range []struct {
		err  error
		code api.Code
	}{
		{fmt.Errorf("x: %w", ublk.ErrTooManyDevices), api.CodeDriver},
		{&ploop.FormatError{File: "f", What: "magic", Found: "0", Class: ploop.ErrNotPloop}, api.CodeImage},
		{&ublk.MissingFeatureError{Missing: ublk.FeatureUserCopy}, api.CodeDriver},
		{errors.New("something"), api.CodeInternal},
	} {
		f.k.openErr = tt.err
		_, err := f.c.Create(ctx, f.spec("v", "i"))
		wantCode(t, err, tt.code)
		if len(f.recorded()) != 0 || len(f.states()) != 0 {
			t.Errorf("%v left %v, %v", tt.err, f.recorded(), f.states())
		}
	}
	// What the kernel lacked is shown until a creation succeeds.
	snap, _ := f.c.Snapshot(ctx)
	if snap.Driver.Available || !strings.Contains(snap.Driver.Missing, "lacks") {
		t.Errorf("driver %+v", snap.Driver)
	}
	f.k.openErr = nil
	f.create("v", "i")
	if snap, _ = f.c.Snapshot(ctx); !snap.Driver.Available {
		t.Errorf("driver %+v", snap.Driver)
	}
}

func TestDriverComesLater(t *testing.T) {
	f := newFixture(t)
	f.crash()
	f.k.notReady = api.Errorf(api.CodeDriver, "%w", ublk.ErrNoDriver)
	f.start()
	snap, err := f.c.Snapshot(ctx)
	if err != nil || snap.Driver.Available || !strings.Contains(snap.Driver.Missing, "modprobe") {
		t.Errorf("driver %+v, %v", snap.Driver, err)
	}
	_, err = f.c.Create(ctx, f.spec("v", "i"))
	wantCode(t, err, api.CodeDriver)
	if len(f.recorded()) != 0 {
		t.Error("a record without a driver")
	}
	f.k.mu.Lock()
	f.k.notReady = nil
	f.k.mu.Unlock()
	f.create("v", "i")
}

// TestTooManyDevices: that the kernel had no room is not said any more once there may be some.
func TestTooManyDevices(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.k.set(func() { f.k.openErr = ublk.ErrTooManyDevices })
	_, err := f.c.Create(ctx, f.spec("w", "j"))
	wantCode(t, err, api.CodeDriver)
	if snap, _ := f.c.Snapshot(ctx); snap.Driver.Available {
		t.Error("the driver is said to be available")
	}
	if err := f.c.Remove(ctx, "v", false); err != nil {
		t.Fatal(err)
	}
	if snap, _ := f.c.Snapshot(ctx); !snap.Driver.Available {
		t.Errorf("the driver is said to be not available: %s", snap.Driver.Missing)
	}
}

func TestRecordCannotBeWritten(t *testing.T) {
	f := newFixture(t)
	// A directory in the record's place stops the rename, for root too.
	if err := os.MkdirAll(f.d.records.Path("v")+"/x", 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := f.c.Create(ctx, f.spec("v", "i"))
	wantCode(t, err, api.CodeInternal)
	if f.k.next != 0 {
		t.Error("the device was opened without a record")
	}
}

func TestRemoveBusy(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.k.setUsers("v", mounted)
	e := wantCode(t, f.c.Remove(ctx, "v", false), api.CodeBusy)
	if !strings.Contains(e.Message, "mounted on /mnt") || !reflect.DeepEqual(e.Users, []api.User{mounted}) {
		t.Errorf("%q, %+v", e.Message, e.Users)
	}
	if f.states()["v"] != "live" {
		t.Errorf("states %v", f.states())
	}
	// Somebody whom only the kernel sees.
	f.k.setUsers("v")
	f.k.closeErr["v"] = fmt.Errorf("try: %w", device.ErrBusy)
	wantCode(t, f.c.Remove(ctx, "v", false), api.CodeBusy)
	delete(f.k.closeErr, "v")
	f.k.setUsers("v", mounted)
	if err := f.c.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
}

func TestRemoveWaitsForUdev(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.k.setUsers("v", api.User{Kind: "process", Name: "(udev-worker)", PID: 1})
	time.AfterFunc(100*time.Millisecond, func() { f.k.setUsers("v") })
	if err := f.c.Remove(ctx, "v", false); err != nil {
		t.Error(err)
	}
	f.create("v", "i")
	f.k.setUsers("v", api.User{Kind: "process", Name: "blkid", PID: 1})
	e := wantCode(t, f.c.Remove(ctx, "v", false), api.CodeBusy)
	if !strings.Contains(e.Message, "blkid") {
		t.Errorf("%q", e.Message)
	}
}

func TestUncleanCloseIsLost(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.k.closeErr["v"] = errors.New("input/output error")
	wantCode(t, f.c.Remove(ctx, "v", false), api.CodeInternal)
	dev, err := f.c.Device(ctx, "v")
	if err != nil || dev.State != api.StateLost || !strings.Contains(dev.Problem, "input/output") || dev.Advice == "" {
		t.Errorf("%+v, %v", dev, err)
	}
	if !slices.Equal(f.recorded(), []string{"v"}) {
		t.Error("the record is gone while the image is in use")
	}
	if err := f.c.Remove(ctx, "v", false); err != nil || !f.k.taken["v"] {
		t.Errorf("the images were not closed: %v", err)
	}
}

func TestSlowCloseIsTriedAgain(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.k.closeErr["v"] = fmt.Errorf("another change of its files is under way: %w", context.DeadlineExceeded)
	e := wantCode(t, f.c.Remove(ctx, "v", false), api.CodeInternal)
	dev, err := f.c.Device(ctx, "v")
	// What it waits for is the device's to say.
	if err != nil || !strings.Contains(e.Message, "try again") || dev.Path == "" || dev.Advice == "" ||
		!strings.Contains(e.Message, "change of its files") || !strings.Contains(dev.Problem, "change of its files") || strings.Contains(e.Message+dev.Problem, "requests") {
		t.Errorf("%q, %+v, %v", e.Message, dev, err)
	}
	// A shutdown goes on trying.
	_, done := f.shutdown()
	time.Sleep(3 * f.d.poll)
	f.k.mu.Lock()
	delete(f.k.closeErr, "v")
	f.k.mu.Unlock()
	if err := <-done; err != nil || len(f.recorded()) != 0 {
		t.Errorf("%v, %v", err, f.recorded())
	}
}

func TestLostDevice(t *testing.T) {
	f := newFixture(t)
	f.create("v", "base", "top")
	f.restart()
	dev, err := f.c.Device(ctx, "v")
	if err != nil || dev.State != api.StateLost || dev.Path != "" || dev.ID != -1 || len(dev.Images) != 2 ||
		!strings.Contains(dev.Advice, "holdfast create v") {
		t.Fatalf("%+v, %v", dev, err)
	}
	if !slices.Equal(f.k.deleted, []int{0}) {
		t.Errorf("deleted from the kernel: %v", f.k.deleted)
	}
	// Its images are nobody else's, and its name stands for its images.
	_, err = f.c.Create(ctx, f.spec("w", "top"))
	if e := wantCode(t, err, api.CodeConflict); !strings.Contains(e.Message, "lost device") {
		t.Errorf("%q", e.Message)
	}
	_, err = f.c.Create(ctx, f.spec("v", "other"))
	wantCode(t, err, api.CodeConflict)
	// A take-over that fails leaves it as it was.
	f.k.openErr = errors.New("no")
	_, err = f.c.Create(ctx, f.spec("v", "base", "top"))
	wantCode(t, err, api.CodeInternal)
	if f.states()["v"] != api.StateLost || !slices.Equal(f.recorded(), []string{"v"}) {
		t.Errorf("%v, %v", f.states(), f.recorded())
	}
	f.k.openErr = nil
	f.create("v", "base", "top")
	if !f.k.taken["v"] {
		t.Error("not taken over")
	}
	if !slices.Equal(f.k.deleted, []int{0}) {
		t.Errorf("deleted from the kernel: %v", f.k.deleted)
	}
	if dev, _ := f.c.Device(ctx, "v"); dev.Problem != "" || dev.Advice != "" || dev.State != "live" {
		t.Errorf("%+v", dev)
	}
	f.create("fresh", "f")
	if f.k.taken["fresh"] {
		t.Error("a new device was allowed a stranger's in-use mark")
	}
}

func TestLostDeviceOfReplacedImage(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.restart()
	// Another file under the same name: whatever is in it, it isn't ours.
	os.Rename(f.image("new").Path, f.image("i").Path)
	_, err := f.c.Create(ctx, f.spec("v", "i"))
	wantCode(t, err, api.CodeConflict)
	e := wantCode(t, f.c.Remove(ctx, "v", false), api.CodeConflict)
	if !strings.Contains(e.Message, "--force") || f.k.taken["v"] {
		t.Errorf("%q, taken %v", e.Message, f.k.taken)
	}
	if err := f.c.Remove(ctx, "v", true); err != nil || f.k.taken["v"] || len(f.recorded()) != 0 {
		t.Errorf("%v, taken %v, %v", err, f.k.taken, f.recorded())
	}
}

func TestRemoveLostFails(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	ro := f.spec("r", "j")
	ro.ReadOnly = true
	if _, err := f.c.Create(ctx, ro); err != nil {
		t.Fatal(err)
	}
	f.restart()
	f.k.stackErr = &ploop.FormatError{File: "i", What: "BAT", Found: "rubbish", Class: ploop.ErrCorrupt}
	e := wantCode(t, f.c.Remove(ctx, "v", false), api.CodeImage)
	if !strings.Contains(e.Message, "rubbish") || f.states()["v"] != api.StateLost {
		t.Errorf("%q, %v", e.Message, f.states())
	}
	if err := f.c.Remove(ctx, "v", true); err != nil {
		t.Error(err)
	}
	if err := f.c.Remove(ctx, "r", false); err != nil || f.k.taken["r"] {
		t.Errorf("a reader leaves no mark to be cleared: %v, %v", err, f.k.taken)
	}
}

func TestAfterReboot(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	rec, _ := state.ReadRecord(f.d.records.Path("v"))
	f.crash()
	rec.BootID = "another"
	rec.Images[0].Dev++ // disks are numbered anew
	if err := (state.Records{Dir: filepath.Join(f.stateDir(), "devices")}).Save(rec); err != nil {
		t.Fatal(err)
	}
	f.k.dead = nil
	f.start()
	if dev, err := f.c.Device(ctx, "v"); err != nil || !strings.Contains(dev.Problem, "machine went down") {
		t.Errorf("%+v, %v", dev, err)
	}
	f.create("v", "i")
	if !f.k.taken["v"] || len(f.k.deleted) != 0 {
		t.Errorf("taken %v, deleted %v", f.k.taken, f.k.deleted)
	}
}

func TestCreateGivenUp(t *testing.T) {
	f := newFixture(t)
	f.k.openHold = make(chan struct{})
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err := f.c.Create(short, f.spec("v", "i"))
	wantCode(t, err, api.CodeUnreachable)
	waitFor(t, "the creation to be taken back", func() bool { return len(f.states()) == 0 })
	if len(f.recorded()) != 0 {
		t.Errorf("records %v", f.recorded())
	}
}

func TestOperationsOnOneNameWait(t *testing.T) {
	f := newFixture(t)
	hold := make(chan struct{})
	f.k.openHold = hold
	first := make(chan error)
	go func() { _, err := f.c.Create(ctx, f.spec("v", "i")); first <- err }()
	waitFor(t, "the first creation", func() bool {
		f.k.mu.Lock()
		defer f.k.mu.Unlock()
		return f.k.opening == 1
	})
	if got := f.states()["v"]; got != api.StateCreating {
		t.Errorf("state %q", got)
	}
	// Others are not held up, not even listing; the same name is.
	f.k.mu.Lock()
	f.k.openHold = nil
	f.k.mu.Unlock()
	f.create("other", "o")
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	wantCode(t, f.d.Remove(short, "v", false), api.CodeBusy)
	second, removed := make(chan error), make(chan error)
	go func() { _, err := f.c.Create(ctx, f.spec("v", "i")); second <- err }()
	time.Sleep(20 * time.Millisecond)
	close(hold)
	if err := <-first; err != nil {
		t.Error(err)
	}
	wantCode(t, <-second, api.CodeExists)
	go func() { removed <- f.c.Remove(ctx, "v", false) }()
	if err := <-removed; err != nil {
		t.Error(err)
	}
}

// TestConcurrent lets clients do what they like on few names and images; the
// fake kernel watches the promises, and at the end all is consistent.
func TestConcurrent(t *testing.T) {
	f := newFixture(t)
	for i := range 4 {
		f.image(fmt.Sprint("i", i))
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 60 {
				name := fmt.Sprint("v", rand.N(3))
				var err error
				switch rand.N(4) {
				case 0, 1:
					_, err = f.d.Create(ctx, f.spec(name, fmt.Sprint("i", rand.N(4))))
				case 2:
					err = f.d.Remove(ctx, name, rand.N(2) == 0)
				case 3:
					f.d.Snapshot()
				}
				switch api.CodeOf(err) {
				case api.CodeExists, api.CodeNotFound, api.CodeConflict:
				default:
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	states := f.states()
	for name := range states {
		if f.k.live[name] == nil {
			t.Errorf("%s is listed and not served", name)
		}
	}
	if len(f.k.live) != len(states) || len(f.recorded()) != len(states) || len(f.d.slots) != len(states) {
		t.Errorf("served %d, listed %d, recorded %d, slots %d", len(f.k.live), len(states), len(f.recorded()), len(f.d.slots))
	}
}

func TestEvents(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	for i := range maxEvents + 3 {
		f.k.live["v"].event(api.Event{Device: "v", Kind: "parked", Message: fmt.Sprint(i)})
	}
	dev, err := f.c.Device(ctx, "v")
	if err != nil || len(dev.Events) != maxEvents || dev.Events[0].Message != "3" {
		t.Errorf("%+v, %v", dev.Events, err)
	}
}
