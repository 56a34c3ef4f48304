package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// fakeSystemd takes down what it is asked.
type fakeSystemd struct {
	mu      sync.Mutex
	calls   []string
	result  string // of jobs; "": none comes
	broken  bool   // the connection is
	missing bool   // no unit is loaded
	units   []dbus.UnitStatus
	files   []dbus.UnitFile
	props   map[string]any
}

func (f *fakeSystemd) took(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken {
		return errors.New("EOF")
	}
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	if f.missing {
		return godbus.Error{Name: noUnit}
	}
	return nil
}

// asked is what it was asked since.
func (f *fakeSystemd) asked() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.calls = nil }()
	return strings.Join(f.calls, "; ")
}

func (f *fakeSystemd) StartUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error) {
	err := f.took("start %s %s", name, mode)
	if err == nil && f.result != "" {
		ch <- f.result
	}
	return 0, err
}

func (f *fakeSystemd) StopUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error) {
	return 0, f.took("stop %s %s", name, mode)
}

func (f *fakeSystemd) ResetFailedUnitContext(ctx context.Context, name string) error {
	return f.took("reset %s", name)
}

func (f *fakeSystemd) EnableUnitFilesContext(ctx context.Context, files []string, runtime, force bool) (bool, []dbus.EnableUnitFileChange, error) {
	return true, nil, f.took("enable %s %t %t", files, runtime, force)
}

func (f *fakeSystemd) DisableUnitFilesContext(ctx context.Context, files []string, runtime bool) ([]dbus.DisableUnitFileChange, error) {
	return nil, f.took("disable %s %t", files, runtime)
}

func (f *fakeSystemd) ListUnitsByPatternsContext(ctx context.Context, states, patterns []string) ([]dbus.UnitStatus, error) {
	return f.units, f.took("list %s", patterns)
}

func (f *fakeSystemd) ListUnitFilesByPatternsContext(ctx context.Context, states, patterns []string) ([]dbus.UnitFile, error) {
	return f.files, f.took("files %s", patterns)
}

func (f *fakeSystemd) GetUnitPropertiesContext(ctx context.Context, unit string) (map[string]any, error) {
	return f.props, f.took("properties %s", unit)
}

func (f *fakeSystemd) GetUnitTypePropertyContext(ctx context.Context, unit, unitType, name string) (*dbus.Property, error) {
	if err := f.took("property %s %s %s", unit, unitType, name); err != nil {
		return nil, err
	}
	value := f.props[name]
	if value == nil {
		value = "nothing"
	}
	return &dbus.Property{Name: name, Value: godbus.MakeVariant(value)}, nil
}

func (f *fakeSystemd) ReloadContext(ctx context.Context) error { return f.took("reload") }

func (f *fakeSystemd) Connected() bool { f.mu.Lock(); defer f.mu.Unlock(); return !f.broken }

func (f *fakeSystemd) Close() {}

// newFake is a launcher with a fake, and what counts its connections.
func newFake(t *testing.T) (*Systemd, *fakeSystemd, *int) {
	s, f, dials := NewSystemd(), &fakeSystemd{result: "done"}, 0
	s.kept, s.gone = t.TempDir(), t.TempDir()
	s.dial = func(context.Context) (manager, error) {
		dials++
		f.mu.Lock()
		defer f.mu.Unlock()
		f.broken = false
		return f, nil
	}
	t.Cleanup(func() { s.Close() })
	return s, f, &dials
}

func TestUnitNames(t *testing.T) {
	for name, want := range map[string]string{
		"a":       "holdfast-device@a.service",
		"vm-1":    `holdfast-device@vm\x2d1.service`,
		"A.b_c-":  `holdfast-device@A.b_c\x2d.service`,
		"0.1..x-": `holdfast-device@0.1..x\x2d.service`,
	} {
		got := unitName(name)
		if back, ok := nameOf(got); got != want || !ok || back != name {
			t.Errorf("%s is %s and back %s, %t", name, got, back, ok)
		}
	}
	for _, u := range []string{"holdfast-device@.service", "holdfast-device@a-b.service", "holdfast@a.service", "holdfast-device@a.socket"} {
		if name, ok := nameOf(u); ok {
			t.Errorf("%s is taken for %s's", u, name)
		}
	}
}

func TestSystemd(t *testing.T) {
	s, f, dials := newFake(t)
	const u = `holdfast-device@vm\x2d1.service`
	want := func(what string, err error, calls string) {
		t.Helper()
		if got := f.asked(); err != nil || got != calls {
			t.Errorf("%s: %v\n%s, and not\n%s", what, err, got, calls)
		}
	}
	want("start", s.Start(ctx, "vm-1"), "reset "+u+"; start "+u+" replace")
	want("stop", s.Stop(ctx, "vm-1"), "stop "+u+" replace")
	want("enable", s.Enable(ctx, "vm-1", true), "enable [holdfast.target "+u+"] false false")
	want("disable", s.Enable(ctx, "vm-1", false), "disable ["+u+"] false")
	f.props = map[string]any{"NRestarts": uint32(7)}
	n, err := s.Restarts(ctx, "vm-1")
	want("restarts", err, "property "+u+" Service NRestarts")
	if n != 7 {
		t.Errorf("%d restarts, and not 7", n)
	}
	f.props = nil
	if _, err := s.Restarts(ctx, "vm-1"); err == nil {
		t.Error("no number is taken for one")
	}
	f.asked()
	f.missing = true
	want("stop", s.Stop(ctx, "vm-1"), "stop "+u+" replace")
	f.missing = false
	f.units = []dbus.UnitStatus{{Name: u, ActiveState: "activating"}, {Name: unitName("b"), ActiveState: "inactive"},
		{Name: unitName("a"), ActiveState: "failed"}, {Name: "holdfast-device@x-y.service", ActiveState: "active"}}
	names, err := s.List(ctx)
	want("list", err, "list [holdfast-device@*.service]")
	if !slices.Equal(names, []string{"a", "vm-1"}) {
		t.Errorf("there are %q", names)
	}
	if err := s.detect(ctx); !errors.Is(err, ErrAbsent) {
		t.Errorf("there is no template: %v", err)
	}
	f.files = []dbus.UnitFile{{Path: "/usr/lib/systemd/system/" + template}}
	if err := s.detect(ctx); err != nil {
		t.Error(err)
	}
	for result, text := range map[string]string{"dependency": "file system", "failed": "systemctl status", "timeout": "timeout", "canceled": "stopped"} {
		f.result = result
		if err := s.Start(ctx, "a"); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("a start that is %q: %v", result, err)
		}
	}
	f.asked()

	// systemd has closed the connection.
	if *dials != 1 {
		t.Errorf("%d connections", *dials)
	}
	f.broken = true
	want("stop", s.Stop(ctx, "vm-1"), "stop "+u+" replace")
	if *dials != 2 {
		t.Errorf("%d connections", *dials)
	}
	// One that is gone for good.
	s.dial = func(context.Context) (manager, error) { return nil, errors.New("refused") }
	f.broken = true
	if err := s.Stop(ctx, "vm-1"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("no systemd: %v", err)
	}
	if err := s.detect(ctx); err == nil || errors.Is(err, ErrAbsent) {
		t.Errorf("no answer is taken for no systemd: %v", err)
	}
	// One that doesn't answer.
	s.dial = func(context.Context) (manager, error) { <-t.Context().Done(); return nil, errors.New("over") }
	ctx, cancel := context.WithCancel(ctx)
	go cancel()
	if err := s.Stop(ctx, "vm-1"); !errors.Is(err, context.Canceled) {
		t.Errorf("a systemd that doesn't answer: %v", err)
	}
	s.Close()
	if err := s.Stop(context.Background(), "vm-1"); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestMissed(t *testing.T) {
	s, f, _ := newFake(t)
	with := func(name string, value any) map[string]any {
		p := map[string]any{"Job": []any{uint32(0), godbus.ObjectPath("/")}, "InactiveExitTimestampMonotonic": uint64(0), "ActiveState": "inactive", "UnitFileState": "enabled"}
		p[name] = value
		return p
	}
	for i, p := range []map[string]any{
		with("", nil),
		with("Job", []any{uint32(7), godbus.ObjectPath("/7")}), // it is about to start
		with("InactiveExitTimestampMonotonic", uint64(5)),      // it was started, and stopped
		with("ActiveState", "activating"),
		with("UnitFileState", "disabled"),
		{},
	} {
		f.props = p
		missed, err := s.Missed(ctx, "vm-1")
		if got := f.asked(); err != nil || missed != (i == 0) || got != `properties holdfast-device@vm\x2d1.service` {
			t.Errorf("%v: %v, %v, %s", p, missed, err, got)
		}
	}
}

func TestDropIns(t *testing.T) {
	s, f, _ := newFake(t)
	path := filepath.Join(s.kept, `holdfast-device@vm\x2d1.service.d/images.conf`)
	has := func(path, want string) {
		t.Helper()
		b, err := os.ReadFile(path)
		if _, text, _ := strings.Cut(string(b), "\n"); err != nil || text != want {
			t.Errorf("%s: %v\n%s, and not\n%s", path, err, text, want)
		}
	}
	set := func(calls string, paths ...string) {
		t.Helper()
		if err := s.Mounts(ctx, "vm-1", paths); err != nil {
			t.Fatal(err)
		}
		if got := f.asked(); got != calls {
			t.Errorf("systemd was asked %q, and not %q", got, calls)
		}
	}
	set("reload", "/srv/b/../a", `/srv/a "b" 100% c\d`, "/srv/a", "/srv/x\ny/z", "/srv/\xff")
	has(path, `[Unit]
RequiresMountsFor="/srv"
RequiresMountsFor="/srv/a \"b\" 100%% c\\d"
RequiresMountsFor="/srv/a"
`)
	set("", "/srv/a", `/srv/a "b" 100% c\d`, "/srv") // the same
	set("reload", "/srv/a")
	if err := s.Mounts(ctx, "vm-1", []string{"a"}); err == nil {
		t.Error("a relative path is taken")
	}
	has(path, "[Unit]\nRequiresMountsFor=\"/srv/a\"\n")

	binary := filepath.Join(s.gone, `holdfast-device@vm\x2d1.service.d/binary.conf`)
	for _, p := range []string{"a", "/a\nb", `/a\b`, "/a'b"} {
		if err := s.SetBinary(ctx, "vm-1", p); err == nil {
			t.Errorf("%q is taken", p)
		}
	}
	if err := s.SetBinary(ctx, "vm-1", `/old 100%/serve`); err != nil {
		t.Fatal(err)
	}
	has(binary, "[Service]\nExecStart=\nExecStart=\"/old 100%%/serve\" %I\n")
	f.asked()

	// An operator's drop-in stays.
	mine := filepath.Join(filepath.Dir(path), "mine.conf")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Forget(ctx, "vm-1"); err != nil {
		t.Fatal(err)
	}
	const u = `holdfast-device@vm\x2d1.service`
	if got, want := f.asked(), "disable ["+u+"] false; reload; reload; reset "+u; got != want {
		t.Errorf("systemd was asked %q, and not %q", got, want)
	}
	kept, _ := filepath.Glob(s.kept + "/*/*")
	gone, _ := filepath.Glob(s.gone + "/*")
	if !slices.Equal(kept, []string{mine}) || len(gone) != 0 {
		t.Errorf("Forget left %q and %q", kept, gone)
	}
}

// TestReloads: many changes while systemd reads its units are one time more.
func TestReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers, done := make(chan error), 0
		r := &reloads{do: func(context.Context) error { done++; return <-answers }}
		first := make(chan error, 1)
		go func() { first <- r.wait(ctx) }()
		synctest.Wait()
		const n = 20
		others := make(chan error, n)
		for range n {
			go func() { others <- r.wait(ctx) }()
		}
		ctx, cancel := context.WithCancel(ctx)
		impatient := make(chan error, 1)
		go func() { impatient <- r.wait(ctx) }()
		synctest.Wait()
		cancel() // who gives up isn't waited for, and the others are
		if err := <-impatient; !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		answers <- nil
		synctest.Wait()
		// Who asked while the first ran isn't answered by it.
		if err := <-first; err != nil || len(others) != 0 || done != 2 {
			t.Errorf("%v, %d answers, %d runs", err, len(others), done)
		}
		no := errors.New("no")
		answers <- no
		for range n {
			if err := <-others; !errors.Is(err, no) {
				t.Errorf("the failure is told as %v", err)
			}
		}
		synctest.Wait()
		if done != 2 || r.running {
			t.Errorf("%d runs for %d changes", done, n+1)
		}
	})
}
