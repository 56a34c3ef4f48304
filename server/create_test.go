package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/server/device"
	"holdfast/state"
	"holdfast/ublk"
)

func TestCreateShowRemove(t *testing.T) {
	h := newHost(t)
	dev := h.create("vol", "base", "top")
	if dev.Path != "/dev/ublkb0" || dev.State != api.StateLive || len(dev.Images) != 2 {
		t.Errorf("created %+v", dev)
	}
	if rec := h.record("vol"); rec.ID != 0 || rec.BootID != state.BootID() || rec.PID != os.Getpid() {
		t.Errorf("record %+v", rec)
	}
	_, err := h.Create(ctx, h.spec("vol", "other"))
	wantCode(t, err, api.CodeExists)
	got, err := h.Device(ctx, "vol")
	if err != nil || !reflect.DeepEqual(got, dev) {
		t.Errorf("show %+v, created %+v, %v", got, dev, err)
	}
	if err := h.Remove(ctx, "vol", false); err != nil {
		t.Fatal(err)
	}
	if len(h.recorded()) != 0 || len(h.k.live) != 0 || h.state("vol") != "" {
		t.Errorf("after removal: records %v, live %v, state %q", h.recorded(), h.k.live, h.state("vol"))
	}
	_, err = h.Device(ctx, "vol")
	wantCode(t, err, api.CodeNotFound)
	// To ask for what there is not doesn't end the server that is to make it.
	wantCode(t, h.Remove(ctx, "vol", true), api.CodeNotFound)
	h.create("vol", "base", "top")
}

func TestCreateRefused(t *testing.T) {
	h := newHost(t)
	bad := func(name string, spec api.Spec, code api.Code, words ...string) {
		t.Helper()
		_, err := call[api.Device](ctx, h, "b", "PUT", "", spec)
		e := wantCode(t, err, code)
		for _, w := range words {
			if !strings.Contains(e.Message, w) {
				t.Errorf("%s: %q doesn't mention %q", name, e.Message, w)
			}
		}
		if got := h.recorded(); len(got) != 0 {
			t.Errorf("%s: records %v", name, got)
		}
	}
	bad("name", api.Spec{Name: "../x", Images: []ploop.ImageRef{h.image("b")}}, api.CodeInvalid)
	bad("another's name", h.spec("c", "b"), api.CodeInvalid, `"b"`, `"c"`)
	bad("no image", api.Spec{Name: "b"}, api.CodeInvalid)
	bad("relative", api.Spec{Name: "b", Images: []ploop.ImageRef{{Path: "b"}}}, api.CodeInvalid, "absolute")
	bad("missing", api.Spec{Name: "b", Images: []ploop.ImageRef{{Path: h.dir + "/none"}}}, api.CodeImage, "none")
	if _, err := h.server("c").Create(ctx, api.Spec{Name: "c", Images: []ploop.ImageRef{{Path: "/\xff"}}}); !strings.Contains(wantCode(t, err, api.CodeInvalid).Message, "UTF-8") {
		t.Error(err)
	}
}

// What can't be created leaves nothing, and ends its server.
func TestCreateFailureLeavesNothing(t *testing.T) {
	h := newHost(t)
	for _, tt := range []struct {
		err  error
		code api.Code
	}{
		{fmt.Errorf("x: %w", ublk.ErrTooManyDevices), api.CodeDriver},
		{&ploop.FormatError{File: "f", What: "magic", Found: "0", Class: ploop.ErrNotPloop}, api.CodeImage},
		{&ublk.MissingFeatureError{Missing: ublk.FeatureUserCopy}, api.CodeDriver},
		{errors.New("something"), api.CodeInternal},
	} {
		h.k.setOpenErr(tt.err)
		_, err := h.Create(ctx, h.spec("v", "i")) // waits for the server's end
		wantCode(t, err, tt.code)
		if len(h.recorded()) != 0 || h.state("v") != "" {
			t.Errorf("%v left %v, %v", tt.err, h.recorded(), h.state("v"))
		}
	}
	h.k.setOpenErr(nil)
	h.create("v", "i")
}

func TestDriverComesLater(t *testing.T) {
	h := newHost(t)
	h.k.set(func() { h.k.notReady = api.Errorf(api.CodeDriver, "%w", ublk.ErrNoDriver) })
	_, err := h.Create(ctx, h.spec("v", "i"))
	wantCode(t, err, api.CodeDriver)
	if len(h.recorded()) != 0 {
		t.Error("a record without a driver")
	}
	h.k.set(func() { h.k.notReady = nil })
	h.create("v", "i")
}

func TestRecordCannotBeWritten(t *testing.T) {
	h := newHost(t)
	h.up("v")
	h.unwritable(func() {
		_, err := call[api.Device](ctx, h, "v", "PUT", "", h.spec("v", "i"))
		wantCode(t, err, api.CodeInternal)
	})
	if h.k.opening != 0 {
		t.Error("the device was opened without a record")
	}
}

func TestCreateGivenUp(t *testing.T) {
	h := newHost(t)
	h.k.set(func() { h.k.openHold = make(chan struct{}) })
	h.up("v")
	impatient, giveUp := context.WithCancel(ctx)
	created := make(chan error, 1)
	go func() { _, err := call[api.Device](impatient, h, "v", "PUT", "", h.spec("v", "i")); created <- err }()
	waitFor(t, "the creation", func() bool { h.k.mu.Lock(); defer h.k.mu.Unlock(); return h.k.opening > 0 })
	giveUp()
	wantCode(t, <-created, api.CodeUnreachable)
	// The creation is undone, and the server ends.
	if code := h.exits("v"); code != ExitOver || len(h.recorded()) != 0 {
		t.Errorf("exit code %d, records %v", code, h.recorded())
	}
}

// TestServerAnswersDuringOperations: whoever asks while an operation hangs is answered, and whoever
// wants another one waits for it.
func TestServerAnswersDuringOperations(t *testing.T) {
	h := newHost(t)
	hold := make(chan struct{})
	h.k.set(func() { h.k.openHold = hold })
	s := h.server("v")
	create := func() <-chan error {
		done := make(chan error, 1)
		go func() { _, err := s.Create(ctx, h.spec("v", "i")); done <- err }()
		return done
	}
	first := create()
	waitFor(t, "the first creation", func() bool {
		h.k.mu.Lock()
		defer h.k.mu.Unlock()
		return h.k.opening == 1
	})
	if got := h.state("v"); got != api.StateCreating {
		t.Errorf("state %q", got)
	}
	if got := h.info("v").Phase; got != string(Creating) {
		t.Errorf("phase %q", got)
	}
	_, err := h.Attach(ctx, "v", "me")
	wantCode(t, err, api.CodeConflict)
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	wantCode(t, s.Remove(short, false), api.CodeBusy)
	second := create()
	h.k.set(func() { h.k.openHold = nil })
	close(hold)
	if err := <-first; err != nil {
		t.Error(err)
	}
	wantCode(t, <-second, api.CodeExists)

	// A removal, and a replacement, that hang in storage.
	for _, holds := range []map[string]chan struct{}{h.k.replaceHold, h.k.closeHold} {
		hold, done := make(chan struct{}), make(chan error, 1)
		h.k.set(func() { holds["v"] = hold })
		go func() {
			var err error
			if len(h.k.replaceHold) > 0 {
				_, err = s.Replace(ctx, api.ReplaceRequest{Image: h.image("new")})
			} else {
				err = s.Remove(ctx, false)
			}
			done <- err
		}()
		waitFor(t, "the operation's begin", func() bool { return len(s.turn.taken) == 1 })
		if got := h.state("v"); got != api.StateLive && got != api.StateRemoving {
			t.Errorf("state %q", got)
		}
		if _, err := h.Attach(ctx, "v", "me"); err != nil {
			t.Error(err)
		}
		h.k.set(func() { delete(holds, "v") })
		close(hold)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if code := h.exits("v"); code != ExitOver {
		t.Errorf("exit code %d", code)
	}
}

// TestNothingAfterTheLast: an operation that waits for the one that ends the server is refused, so
// that no device is made that nobody serves.
func TestNothingAfterTheLast(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	s := h.server("v")
	hold := make(chan struct{})
	h.k.set(func() { h.k.closeHold["v"] = hold })
	removed, created := make(chan error, 1), make(chan error, 1)
	go func() { removed <- s.Remove(ctx, false) }()
	waitFor(t, "the removal's begin", func() bool { return h.state("v") == api.StateRemoving })
	go func() { _, err := s.Create(ctx, h.spec("v", "i")); created <- err }()
	close(hold)
	if err := <-removed; err != nil {
		t.Error(err)
	}
	wantCode(t, <-created, api.CodeStopping)
	if code := h.exits("v"); code != ExitOver || len(h.recorded()) != 0 || len(h.k.live) != 0 {
		t.Errorf("exit code %d, records %v, live %v", code, h.recorded(), h.k.live)
	}

	// So it is with a creation that fails.
	hold = make(chan struct{})
	h.k.set(func() { h.k.openHold, h.k.openErr = hold, errors.New("not today") })
	s = h.server("w")
	for range cap(created) + 1 {
		go func() { _, err := s.Create(ctx, h.spec("w", "i")); removed <- err }()
	}
	waitFor(t, "the first creation", func() bool { return len(s.turn.taken) == 1 })
	close(hold)
	codes := []string{string(api.CodeOf(<-removed)), string(api.CodeOf(<-removed))}
	slices.Sort(codes)
	if !slices.Equal(codes, []string{string(api.CodeInternal), string(api.CodeStopping)}) {
		t.Errorf("two creations: %v", codes)
	}
}

func TestLostDevice(t *testing.T) {
	h := newHost(t)
	h.create("v", "base", "top")
	h.restart("v")
	dev := h.eventually("v", api.StateLost)
	if dev.Path != "" || dev.ID != -1 || len(dev.Images) != 2 || !strings.Contains(dev.Advice, "holdfast create v") {
		t.Fatalf("%+v", dev)
	}
	if !slices.Equal(h.k.deleted, []int{0}) {
		t.Errorf("deleted from the kernel: %v", h.k.deleted)
	}
	// Its name stands for its images.
	_, err := h.Create(ctx, h.spec("v", "other"))
	wantCode(t, err, api.CodeConflict)
	// A take-over that fails leaves it as it was.
	h.k.setOpenErr(errors.New("no"))
	_, err = h.Create(ctx, h.spec("v", "base", "top"))
	wantCode(t, err, api.CodeInternal)
	if h.state("v") != api.StateLost || !slices.Equal(h.recorded(), []string{"v"}) {
		t.Errorf("%v, %v", h.state("v"), h.recorded())
	}
	h.k.setOpenErr(nil)
	h.create("v", "base", "top")
	if !h.k.isTaken("v") {
		t.Error("not taken over")
	}
	if !slices.Equal(h.k.deleted, []int{0}) {
		t.Errorf("deleted from the kernel: %v", h.k.deleted)
	}
	if dev, _ := h.Device(ctx, "v"); dev.Problem != "" || dev.Advice != "" || dev.State != api.StateLive {
		t.Errorf("%+v", dev)
	}
	h.create("fresh", "f")
	if h.k.isTaken("fresh") {
		t.Error("a new device was allowed a stranger's in-use mark")
	}
}

func TestLostDeviceOfReplacedImage(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.restart("v")
	// Another file under the same name: whatever is in it, it isn't ours.
	if err := os.Rename(h.image("new").Path, h.image("i").Path); err != nil {
		t.Fatal(err)
	}
	h.eventually("v", api.StateLost)
	_, err := h.Create(ctx, h.spec("v", "i"))
	wantCode(t, err, api.CodeConflict)
	e := wantCode(t, h.Remove(ctx, "v", false), api.CodeConflict)
	if !strings.Contains(e.Message, "--force") || h.k.isTaken("v") {
		t.Errorf("%q, taken %v", e.Message, h.k.taken)
	}
	if err := h.Remove(ctx, "v", true); err != nil || h.k.isTaken("v") || len(h.recorded()) != 0 {
		t.Errorf("%v, taken %v, %v", err, h.k.taken, h.recorded())
	}
}

// TestAfterReboot: of a record from before a reboot the driver knows nothing, and its number is
// anybody's.
func TestAfterReboot(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.lose("v")
	rec := h.record("v")
	rec.BootID = "another"
	rec.Images[0].Dev++ // disks are numbered anew
	rec.Serial++
	if err := errors.Join(h.records().Save(rec), os.RemoveAll(filepath.Join(h.runDir(), "devices"))); err != nil {
		t.Fatal(err)
	}
	h.k.set(func() { clear(h.k.dead); h.k.waiting[rec.ID] = "another" })
	if dev := h.eventually("v", api.StateLost); !strings.Contains(dev.Problem, "machine went down") {
		t.Errorf("%+v", dev)
	}
	h.create("v", "i")
	if !h.k.isTaken("v") || len(h.k.deleted) != 0 {
		t.Errorf("taken %v, deleted %v", h.k.taken, h.k.deleted)
	}
}

// A device that is stuck in its creation has its record, and its claims, until it is removed.
func TestStuckCreation(t *testing.T) {
	h := newHost(t)
	h.k.setOpenErr(fmt.Errorf("%w: x", device.ErrStuck))
	if _, err := h.Create(ctx, h.spec("a", "a")); err == nil {
		t.Fatal("no error")
	}
	if dev := h.eventually("a", api.StateLost); dev.Problem == "" {
		t.Errorf("%+v", dev)
	}
	_, err := h.Create(ctx, h.spec("b", "a"))
	if e := wantCode(t, err, api.CodeConflict); !strings.Contains(e.Message, `device "a"`) {
		t.Errorf("%q", e.Message)
	}
	if got := h.recorded(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("recorded: %q", got)
	}
}

// Of a lost device that is created again the new record counts, also where only one of the
// two directories could be written to.
func TestSerialGoesOn(t *testing.T) {
	h := newHost(t)
	h.create("a", "a")
	h.restart("a")
	h.eventually("a", api.StateLost)
	was := h.record("a").Serial
	h.create("a", "a")
	if now := h.record("a").Serial; now <= was {
		t.Errorf("serial %d, and it was %d", now, was)
	}
	h.restart("a")
	h.eventually("a", api.StateLost)
	was = h.record("a").Serial
	h.k.setOpenErr(errors.New("not today"))
	if _, err := h.Create(ctx, h.spec("a", "a")); err == nil {
		t.Error("no error")
	}
	if now := h.record("a").Serial; now < was+2 {
		t.Errorf("after a creation was undone: serial %d, and it was %d", now, was)
	}
}
