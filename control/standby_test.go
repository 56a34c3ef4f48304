package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/state"
)

func (f *fixture) record(name string) *state.Record {
	f.t.Helper()
	rec, err := state.ReadRecord(state.Records{Dir: filepath.Join(f.stateDir(), "devices")}.Path(name))
	if err != nil {
		f.t.Fatal(err)
	}
	return rec
}

// events are those of a device, by kind.
func (f *fixture) events(name string) (kinds []string) {
	f.t.Helper()
	err := f.c.Events(ctx, api.EventsQuery{Device: name}, func(e api.Event) error { kinds = append(kinds, e.Kind); return nil })
	if err != nil {
		f.t.Fatal(err)
	}
	return kinds
}

func TestKeyByHand(t *testing.T) {
	f := newFixture(t)
	for range 2 { // twice on is on once
		key, err := f.c.SetKey(ctx, true)
		if err != nil || !key.On || !slices.Equal(key.Holders, []string{"hand"}) {
			t.Fatalf("%+v, %v", key, err)
		}
	}
	for range 2 {
		if key, err := f.c.SetKey(ctx, false); err != nil || key.On {
			t.Fatalf("%+v, %v", key, err)
		}
	}
	f.d.key.Enable("lio")
	_, err := f.c.SetKey(ctx, false)
	if e := wantCode(t, err, api.CodeBusy); !strings.Contains(e.Message, "lio") {
		t.Errorf("%q", e.Message)
	}
	if got := f.events(""); !slices.Equal(got, []string{api.EventKeyOn, api.EventKeyOff}) {
		t.Errorf("events %v", got)
	}
}

func TestLeases(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	_, err := f.c.Detach(ctx, "v", "a")
	wantCode(t, err, api.CodeNotFound)
	_, err = f.c.Attach(ctx, "w", "a")
	wantCode(t, err, api.CodeNotFound)
	for _, bad := range []string{"-a", "a b", strings.Repeat("x", 65), "ü"} {
		_, err = f.c.Attach(ctx, "v", bad)
		wantCode(t, err, api.CodeInvalid)
	}
	for range 2 { // idempotent
		if dev, err := f.c.Attach(ctx, "v", "a"); err != nil || !slices.Equal(dev.Standby.Consumers, []string{"a"}) {
			t.Fatalf("%+v, %v", dev, err)
		}
	}
	if _, err := f.c.Attach(ctx, "v", "b"); err != nil {
		t.Fatal(err)
	}
	if got := f.record("v").Leases; !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("recorded %v", got)
	}
	if _, err := f.c.Detach(ctx, "v", "b"); err != nil {
		t.Fatal(err)
	}
	// A lease outlives the daemon, with its device.
	f.restart()
	if dev := f.create("v", "i"); !slices.Equal(dev.Standby.Consumers, []string{"a"}) {
		t.Errorf("after a crash: %v", dev.Standby.Consumers)
	}
	// And goes with it.
	if err := f.c.Remove(ctx, "v", false); err != nil {
		t.Fatal(err)
	}
	if dev := f.create("v", "i"); len(dev.Standby.Consumers) != 0 {
		t.Errorf("of a new device: %v", dev.Standby.Consumers)
	}
}

// TestLeaseNotDurable has a state directory that takes nothing: a lease that would be
// forgotten isn't given.
func TestLeaseNotDurable(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	dir := filepath.Join(f.stateDir(), "devices")
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	_, err := f.c.Attach(ctx, "v", "a")
	wantCode(t, err, api.CodeInternal)
	if dev, _ := f.c.Device(ctx, "v"); len(dev.Standby.Consumers) != 0 {
		t.Errorf("consumers %v", dev.Standby.Consumers)
	}
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
}

func TestSetStandby(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	_, err := f.c.SetStandby(ctx, "v", true)
	e := wantCode(t, err, api.CodeNotSupported)
	if !strings.Contains(e.Message, "standby-check on") || !strings.Contains(e.Message, "attach v") {
		t.Errorf("%q", e.Message)
	}
	f.arm("v")
	dev, err := f.c.SetStandby(ctx, "v", true)
	if err != nil || dev.Standby.Value != "on" || dev.State != api.StateStandby || dev.Problem == "" || !strings.Contains(dev.Advice, "holdfast replace v --top") {
		t.Fatalf("%+v, %v", dev, err)
	}
	if dev, err = f.c.SetStandby(ctx, "v", false); err != nil || dev.Standby.Value != "off" || dev.Problem != "" {
		t.Fatalf("%+v, %v", dev, err)
	}
}

func (f *fixture) arm(name string) {
	f.t.Helper()
	if _, err := f.c.SetKey(ctx, true); err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.c.Attach(ctx, name, "test"); err != nil {
		f.t.Fatal(err)
	}
}

func TestReplace(t *testing.T) {
	f := newFixture(t)
	f.create("v", "base", "top")
	f.create("w", "other")
	before := f.record("v")
	// An image of another device is not for this one.
	for level := range 2 {
		_, err := f.c.Replace(ctx, "v", api.ReplaceRequest{Image: f.image("other"), Level: &level})
		if e := wantCode(t, err, api.CodeConflict); !strings.Contains(e.Message, fmt.Sprintf("%q belongs to device \"w\"", f.image("other").Path)) {
			t.Errorf("level %d: %q", level, e.Message)
		}
	}
	_, err := f.c.Replace(ctx, "v", api.ReplaceRequest{Image: ploop.ImageRef{Path: f.dir + "/none"}})
	wantCode(t, err, api.CodeImage)
	_, err = f.c.Replace(ctx, "v", api.ReplaceRequest{Image: ploop.ImageRef{Path: "relative"}})
	wantCode(t, err, api.CodeInvalid)
	_, err = f.c.Replace(ctx, "u", api.ReplaceRequest{Image: f.image("new")})
	wantCode(t, err, api.CodeNotFound)
	f.k.set(func() {
		f.k.replaceErr = &ploop.FormatError{File: "x", Offset: 64, What: "BAT", Found: "1", Want: "2", Class: ploop.ErrDiverged}
	})
	_, err = f.c.Replace(ctx, "v", api.ReplaceRequest{Image: f.image("new")})
	if e := wantCode(t, err, api.CodeImage); !strings.Contains(e.Message, "--force") {
		t.Errorf("%q", e.Message)
	}
	f.k.set(func() { f.k.replaceErr = stack.ErrInFlight })
	_, err = f.c.Replace(ctx, "v", api.ReplaceRequest{Image: f.image("new")})
	wantCode(t, err, api.CodeBusy)
	if got := f.record("v"); got.Generation != before.Generation || got.Spec.Images[1] != before.Spec.Images[1] {
		t.Errorf("a failed replacement changed the record: %+v", got)
	}
	f.k.set(func() { f.k.replaceErr = nil })
	dev, err := f.c.Replace(ctx, "v", api.ReplaceRequest{Image: f.image("new"), Force: true, Drain: api.Duration(time.Second)})
	if err != nil || dev.Images[1].Path != f.image("new").Path {
		t.Fatalf("%+v, %v", dev, err)
	}
	if r := f.k.live["v"].replaced; len(r) != 1 || !r[0].Force || r[0].Drain != time.Second {
		t.Errorf("asked for %+v", r)
	}
	got := f.record("v")
	if got.Generation != before.Generation+1 || got.Spec.Images[1] != f.image("new") || got.Images[1] == before.Images[1] || got.Images[0] != before.Images[0] {
		t.Errorf("record %+v", got)
	}
	// The old file is free, the new one taken; a crash finds the new one.
	f.create("x", "top")
	_, err = f.c.Create(ctx, f.spec("y", "new"))
	wantCode(t, err, api.CodeConflict)
	f.restart()
	f.create("v", "base", "new")
}

// TestInterrupted: what goes on in the daemon when its client is interrupted is named.
func TestInterrupted(t *testing.T) {
	f := newFixture(t)
	hold := make(chan struct{})
	defer close(hold)
	for i, what := range []string{"the removal", "the replacement"} {
		name := fmt.Sprintf("v%d", i)
		f.create(name, name)
		client, interrupt := context.WithCancel(ctx)
		err := f.d.inBackground(client, name, what, func(context.Context, *slot) error { interrupt(); <-hold; return nil })
		if err == nil || !strings.Contains(err.Error(), what+" goes on in the daemon") {
			t.Errorf("%v", err)
		}
	}
}

// TestReplaceByHungFile asks for a file in storage that hangs: whoever does so is told in
// time.
func TestReplaceByHungFile(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	_, err := answered(10*time.Millisecond, ploop.ImageRef{Path: "/mnt/dead/file"}, func() ([]state.ImageID, error) { <-hang; return nil, nil })
	if e := wantCode(t, err, api.CodeImage); !strings.Contains(e.Message, "/mnt/dead/file") || !strings.Contains(e.Message, "umount -f") {
		t.Errorf("%q", e.Message)
	}
}

// TestReplaceNotDurable has the record not written: then nothing was replaced.
func TestReplaceNotDurable(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	dir := filepath.Join(f.stateDir(), "devices")
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	_, err := f.c.Replace(ctx, "v", api.ReplaceRequest{Image: f.image("new")})
	wantCode(t, err, api.CodeInternal)
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
	if dev, _ := f.c.Device(ctx, "v"); dev.Images[0].Path != f.image("i").Path {
		t.Errorf("%+v", dev.Images)
	}
}

func (k *fakeKernel) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
}

func TestEventsFollow(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	follow, stop := context.WithCancel(ctx)
	got := make(chan api.Event, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- f.c.Events(follow, api.EventsQuery{Follow: true, Device: "v"}, func(e api.Event) error { got <- e; return nil })
	}()
	waitFor(t, "the reader", func() bool {
		f.d.events.mu.Lock()
		defer f.d.events.mu.Unlock()
		return len(f.d.events.readers) == 1
	})
	f.k.live["v"].event(api.Event{Device: "w", Kind: "x"})
	f.k.live["v"].event(api.Event{Device: "v", Kind: api.EventStandby, Message: "it is"})
	if e := <-got; e.Kind != api.EventStandby || e.Message != "it is" {
		t.Errorf("%+v", e)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestSlowReader: one who doesn't read is told how much it missed, and holds nobody up.
func TestSlowReader(t *testing.T) {
	var l eventLog
	_, r := l.follow()
	for range maxKept + maxPending {
		l.add(api.Event{Kind: "x"})
	}
	if n := r.missed.Load(); n != maxKept {
		t.Errorf("missed %d, want %d", n, maxKept)
	}
	kept, other := l.follow()
	if len(kept) > maxKept || len(kept) < maxKept/2 {
		t.Errorf("%d kept", len(kept))
	}
	l.leave(r)
	l.leave(other)
	if len(l.readers) != 0 {
		t.Errorf("%d readers", len(l.readers))
	}
}

// TestManyFailures has a device fail more requests than events are kept: those of others
// are there still.
func TestManyFailures(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.create("w", "j")
	f.k.live["w"].event(api.Event{Device: "w", Kind: api.EventStandby})
	for range 2 * maxKept {
		f.k.live["v"].event(api.Event{Device: "v", Kind: api.EventIOError})
	}
	if got := f.events("w"); !slices.Contains(got, api.EventStandby) {
		t.Errorf("w: %v", got)
	}
	if got := f.events("v"); !slices.Contains(got, api.EventIOError) {
		t.Errorf("v: %v", got)
	}
}

func TestHooks(t *testing.T) {
	f := newFixture(t)
	out := filepath.Join(f.dir, "out")
	hook := filepath.Join(f.dir, "hook")
	script := "#!/bin/sh\necho \"$HOLDFAST_DEVICE $HOLDFAST_EVENT $HOLDFAST_STATE $HOLDFAST_PATH\" >>" + out + "\n[ $HOLDFAST_STATE = on ] || exit 7\n"
	spec := f.spec("v", "i")
	spec.OnStandby, spec.OnRecovered = hook, hook
	_, err := f.c.Create(ctx, spec)
	wantCode(t, err, api.CodeInvalid) // not there
	if err := os.WriteFile(hook, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(hook, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := f.c.Create(ctx, spec); err != nil {
		t.Fatal(err)
	}
	dev := f.k.live["v"]
	for _, kind := range []string{api.EventStandby, api.EventAttached, api.EventRecovered} {
		dev.event(api.Event{Device: "v", Kind: kind})
	}
	want := "v standby on /dev/ublkb0\nv recovered off /dev/ublkb0\n"
	waitFor(t, "both hooks", func() bool { b, _ := os.ReadFile(out); return string(b) == want })
	waitFor(t, "the failure's event", func() bool { return slices.Contains(f.events("v"), api.EventHookFailed) })
}

func TestMetrics(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.arm("v")
	resp, err := f.c.HTTP().Get("http://holdfast/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", resp.Status, err)
	}
	for _, want := range []string{`holdfast_standby{device="v"} 0`, `holdfast_standby_supported{device="v"} 1`, "holdfast_standby_check 1", `holdfast_tags{device="v"} 128`} {
		if !strings.Contains(string(text), want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	problems, err := promlint.New(strings.NewReader(string(text))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "holdfast_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestTree(t *testing.T) {
	f := newFixture(t)
	f.d.cfg.sys = f.dir
	f.create("v", "base", "i")
	for _, d := range []string{"block/ublkb0"} {
		if err := os.MkdirAll(filepath.Join(f.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(f.dir, "block/ublkb0/stat"), []byte("   1  2  3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	get := func(path, want string) {
		t.Helper()
		if a, err := f.c.Attr(ctx, path); err != nil || a.Value != want {
			t.Errorf("%s: %+v, %v, want %q", path, a, err, want)
		}
	}
	set := func(path, value string, code api.Code) {
		t.Helper()
		err := f.c.SetAttr(ctx, path, value)
		if code == "" && err != nil || code != "" && api.CodeOf(err) != code {
			t.Errorf("%s = %q: %v, want %q", path, value, err, code)
		}
	}
	const sb, en, check = "block/v/queue/standby", "block/v/queue/standby_en", "module/parameters/standby_check"
	get(sb, "not supported")
	get(check, "0")
	get("block/v/stat", "   1  2  3")
	get("block/ublkb0/size", "2097152")
	get("block/v/image/deltas", f.image("base").Path+"\n"+f.image("i").Path)
	get("block/v/state", "live")
	set(sb, "on", api.CodeNotSupported)
	set(sb, "off", "")
	set(sb, "maybe", api.CodeInvalid)
	set("block/v/ro", "0", api.CodeInvalid)
	set("block/w/queue/standby", "on", api.CodeNotFound)
	set(check, "2", api.CodeInvalid)
	set(check, "1", "")
	get(check, "1")
	set(en, "1\n", "")
	get(en, "1")
	get(sb, "off")
	set(sb, "on", "")
	get(sb, "on")
	get("block/v/standby_cause", "by hand")
	if _, err := f.c.Attach(ctx, "v", "other"); err != nil {
		t.Fatal(err)
	}
	set(en, "0", api.CodeBusy) // the tree's own lease is dropped, another is held
	get("block/v/standby_consumers", "other")
	if _, err := f.c.Detach(ctx, "v", "other"); err != nil {
		t.Fatal(err)
	}
	set(en, "0", "")
	get(sb, "not supported")
	f.d.key.Enable("lio")
	set(check, "0", api.CodeBusy)
	get(check, "1")
	list, err := f.c.Attr(ctx, "block")
	if err != nil || !list.Dir || len(list.Entries) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := f.c.Remove(ctx, "v", false); err != nil {
		t.Fatal(err)
	}
	_, err = f.c.Attr(ctx, sb)
	wantCode(t, err, api.CodeNotFound)
}

// TestTargets has a made-up LIO export a device: it holds the key, and the lease.
func TestTargets(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.create("other", "o")
	f.crash()
	f.k = newFake(t)
	f.k.stateDir = f.stateDir()
	f.targets = []string{"lio"}
	f.start()
	f.create("v", "i")
	f.create("other", "o")
	core := filepath.Join(f.dir, "config/target/core")
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(core, "iblock_0/b", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	value := func(name string) string {
		dev, err := f.c.Device(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return dev.Standby.Value
	}
	if err := os.MkdirAll(core, 0o755); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the key", f.d.key.On)
	_, err := f.c.Attach(ctx, "v", "lio")
	wantCode(t, err, api.CodeInvalid) // that is the target's own
	write("udev_path", f.k.live["v"].Path())
	write("enable", "1\n")
	waitFor(t, "the lease", func() bool { return value("v") == "off" })
	if value("other") != "not supported" {
		t.Error("a device that no target has got a lease")
	}
	if rec := f.record("v"); len(rec.Leases) != 0 {
		t.Errorf("a target's lease is in the record: %v", rec.Leases)
	}
	// Another device of that number gets the lease when it comes.
	if err := f.c.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	f.k.set(func() { f.k.next = 0 })
	f.create("again", "i")
	waitFor(t, "the lease of the next device", func() bool { return value("again") == "off" })
	write("enable", "0\n")
	waitFor(t, "the lease's end", func() bool { return value("again") == "not supported" })
	if err := os.RemoveAll(filepath.Join(f.dir, "config/target")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the key's end", func() bool { return !f.d.key.On() })
}

// TestWhy reads what a person would.
func TestWhy(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	why := func() string {
		t.Helper()
		snap, err := f.c.Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(api.Why(&snap.Devices[0], &snap.Key), " ")
	}
	has := func(words ...string) {
		t.Helper()
		text := why()
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("%q doesn't say %q", text, w)
			}
		}
	}
	has("v is live since", "reach its users at once", "standby-check on", "attach v")
	f.arm("v")
	has("will be held", "hand", "test")
	if err := f.d.SetAttr("block/v/queue/standby", "on"); err != nil {
		t.Fatal(err)
	}
	has("in standby since", "of at most 128", "by hand", "1 consumer", "holdfast replace v --top", "standby v off")
	if text := why(); strings.Contains(text, "bring the storage") {
		t.Errorf("the storage is said to be away: %s", text)
	}
	if _, err := f.c.Detach(ctx, "v", "test"); err != nil {
		t.Fatal(err)
	}
	has("marked in standby all the same", "no consumer has a lease")
	f.restart()
	has("v is lost", "its daemon")
}

// TestWhyByHand: a standby that somebody wants to be by hand is not said to be on its way to
// be ended by a reopening.
func TestWhyByHand(t *testing.T) {
	since := time.Now()
	dev := &api.Device{Status: api.Status{Name: "v", State: api.StateStandby}}
	dev.Standby = api.StandbyStatus{Value: "on", Since: &since, Errno: "EIO", Cause: "a read", Recovery: api.RecoveryReopen}
	text := func() string {
		api.Advise(dev)
		return dev.Advice + " " + strings.Join(api.Why(dev, &api.KeyInfo{}), " ")
	}
	if s := text(); !strings.Contains(s, "one is under way") || !strings.Contains(s, "bring the storage") {
		t.Errorf("%q", s)
	}
	dev.Standby.ByHand = true
	if s := text(); strings.Contains(s, "under way") || strings.Contains(s, "nothing needs to be done") || strings.Contains(s, "bring the storage") || !strings.Contains(s, "by hand") || !strings.Contains(s, "holdfast replace v --top") {
		t.Errorf("%q", s)
	}
}

// TestWhyReplacing: a device that a failed replacement left closed says how to open it.
func TestWhyReplacing(t *testing.T) {
	dev := &api.Device{Status: api.Status{Name: "v", State: api.StateReplacing}}
	dev.Standby.LastError = "the lock was lost"
	if text := strings.Join(api.Why(dev, &api.KeyInfo{}), " "); !strings.Contains(text, "the lock was lost") || !strings.Contains(text, "holdfast replace v FILE") {
		t.Errorf("%q", text)
	}
}

func TestStandbyErrorsTravel(t *testing.T) {
	for _, code := range []api.Code{api.CodeNotSupported, api.CodeBusy} {
		if e := api.Errorf(code, "x"); e.Code.Status() < 400 || e.Code.Status() >= 500 {
			t.Errorf("%s: %d", code, e.Code.Status())
		}
	}
	if err := attrError(nil); err != nil {
		t.Errorf("attrError(nil): %v", err)
	}
	if err := attrError(errors.New("x")); err == nil {
		t.Error("no error")
	}
}
