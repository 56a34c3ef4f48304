package manager

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/state"
)

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
	f.m.check.holders.Enable("lio")
	_, err := f.c.SetKey(ctx, false)
	if e := wantCode(t, err, api.CodeBusy); !strings.Contains(e.Message, "lio") {
		t.Errorf("%q", e.Message)
	}
	if got := f.events(""); !slices.Equal(got, []string{api.EventKeyOn, api.EventKeyOff}) {
		t.Errorf("events %v", got)
	}
}

// TestKeyWord: servers see whether the standby check is on, over the manager's death
// and restart, and a file that somebody spoils is mended.
func TestKeyWord(t *testing.T) {
	f := newFixture(t)
	server, err := state.OpenKey(f.run(), zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	wantWord := func(want uint32, when string) {
		t.Helper()
		if got := server.Load(); got != want {
			t.Errorf("%s: %d, want %d", when, got, want)
		}
	}
	turn := func(on bool) {
		t.Helper()
		if _, err := f.c.SetKey(ctx, on); err != nil {
			t.Fatal(err)
		}
	}
	wantWord(0, "at first")
	turn(true)
	wantWord(1, "turned on")
	f.stop()
	wantWord(1, "without a manager")
	f.start()
	wantWord(1, "with the next manager")
	if info := f.m.Key(); !info.On {
		t.Errorf("the next manager: %+v", info)
	}
	path := filepath.Join(f.run(), "key")
	for what, spoil := range map[string]func() error{
		"written to": func() error { return os.WriteFile(path, []byte("0\n"), 0o600) },
		"removed":    func() error { return os.Remove(path) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the file, "+what+", is mended", func() bool {
			k, err := state.OpenKey(f.run(), zerolog.Nop())
			return err == nil && k.Load() == 1
		})
	}
	f.stop()
	if err := os.WriteFile(filepath.Join(f.run(), "key.json"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.start()
	if server, err = state.OpenKey(f.run(), zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	wantWord(0, "with nobody who is known to hold it")
}

// TestTargets has a made-up LIO export a device: it holds the key, and the lease, which its server
// is asked for until it takes it.
func TestTargets(t *testing.T) {
	f := newFixture(t)
	f.targets = []string{"lio"}
	f.restart()
	f.create("v", "i")
	f.create("other", "o")
	core := filepath.Join(f.dir, "config/target/core")
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(core, "iblock_0/b", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
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
	waitFor(t, "the key", f.m.check.on)
	_, err := f.c.Attach(ctx, "v", "lio")
	wantCode(t, err, api.CodeInvalid) // that is the target's own
	v := f.h.server("v")
	v.set(func() { v.refuse = api.Errorf(api.CodeConflict, "not now") })
	write("udev_path", "/dev/ublkb0")
	write("enable", "1\n")
	waitFor(t, "some attempts", func() bool { f.m.targets.mu.Lock(); defer f.m.targets.mu.Unlock(); return f.m.targets.said["v"] != "" })
	v.set(func() { v.refuse = nil })
	waitFor(t, "the lease", func() bool { return value("v") == "off" })
	if value("other") != "not supported" {
		t.Error("a device that no target has got a lease")
	}
	if info := f.m.Key().Targets; len(info) != 1 || !slices.Equal(info[0].Devices, []string{"v"}) || !info[0].Present {
		t.Errorf("%+v", info)
	}
	rec, _, err := f.h.records().ReadOne("v")
	if err != nil || len(rec.Leases) != 0 || !slices.Equal(rec.TargetLeases, []string{"lio"}) {
		t.Errorf("record: %+v, %v", rec, err)
	}
	// One that can't be read when a manager follows another keeps what it had.
	enable := filepath.Join(core, "iblock_0/b/enable")
	f.stop()
	if err := errors.Join(os.Remove(enable), os.Mkdir(enable, 0o755)); err != nil { // EISDIR
		t.Fatal(err)
	}
	f.start()
	waitFor(t, "a look at it", func() bool { return len(f.m.Key().Targets) == 1 && f.m.Key().Targets[0].Error != "" })
	f.m.targets.apply(ctx)
	if got := value("v"); got != "off" || !f.m.check.on() {
		t.Errorf("standby is %s", got)
	}
	if err := os.Remove(enable); err != nil {
		t.Fatal(err)
	}
	write("enable", "1\n")
	// Another device of that number gets the lease when it comes.
	if err := f.c.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	if dev := f.create("again", "i"); dev.ID != 0 {
		t.Fatalf("%+v", dev)
	}
	waitFor(t, "the lease of the next device", func() bool { return value("again") == "off" })
	write("enable", "0\n")
	waitFor(t, "the lease's end", func() bool { return value("again") == "not supported" })
	if err := os.RemoveAll(filepath.Join(f.dir, "config/target")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the key's end", func() bool { return !f.m.check.on() })
}

func TestTree(t *testing.T) {
	f := newFixture(t)
	f.create("v", "base", "i")
	if err := errors.Join(os.MkdirAll(filepath.Join(f.dir, "block/ublkb0"), 0o755),
		os.WriteFile(filepath.Join(f.dir, "block/ublkb0/stat"), []byte("   1  2  3\n"), 0o600)); err != nil {
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
	get("block/v/server/state", "up")
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
	f.m.check.holders.Enable("lio")
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

func TestAttrErrors(t *testing.T) {
	if err := attrError(nil); err != nil {
		t.Errorf("attrError(nil): %v", err)
	}
	if err := attrError(errors.New("x")); err == nil {
		t.Error("no error")
	}
}
