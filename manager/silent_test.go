package manager

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/sys/unix"

	"holdfast/api"
)

// metrics is the page of figures.
func (f *fixture) metrics() string {
	f.t.Helper()
	resp, err := f.c.HTTP().Get("http://holdfast/metrics")
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		f.t.Fatalf("%s, %v", resp.Status, err)
	}
	return string(text)
}

func (f *fixture) wantMetrics(want ...string) {
	f.t.Helper()
	text := f.metrics()
	for _, w := range want {
		if !strings.Contains(text, "\n"+w+"\n") {
			f.t.Errorf("no %s", w)
		}
	}
}

// TestSilence: of a server that doesn't answer the last report is shown, nobody who reads waits for
// it after the first, and commands are refused; all others are what they were.
func TestSilence(t *testing.T) {
	f := newFixture(t)
	f.stop()
	f.pace.check, f.pace.retry = time.Hour, time.Hour
	f.start()
	f.create("v", "i")
	f.create("w", "j")
	v := f.h.server("v")
	v.silence()
	waitFor(t, "the one to be silent, and the other not", func() bool { s := f.states(); return s["v"] == api.StateSilent && s["w"] == api.StateLive })
	came := v.requests()
	for range 20 {
		dev, err := f.c.Device(ctx, "v")
		if err != nil || dev.State != api.StateSilent || dev.Server.State != api.ServerSilent || dev.Server.AsOf.IsZero() || dev.Images[0].Path != f.image("i").Path {
			t.Fatalf("%+v, %v", dev, err)
		}
		f.eventually("w", api.StateLive)
		for path, want := range map[string]string{"state": "silent", "queue/standby": "not supported", "image/top": f.image("i").Path, "server/state": "silent", "size": "2097152"} {
			if a, err := f.c.Attr(ctx, "block/v/"+path); err != nil || a.Value != want {
				t.Errorf("%s: %+v, %v", path, a, err)
			}
		}
	}
	if n := v.requests(); n != came {
		t.Errorf("the silent server was asked %d times by those who read", n-came)
	}
	f.wantMetrics(`holdfast_server_state{device="v",state="silent"} 1`, `holdfast_server_state{device="v",state="up"} 0`, `holdfast_device_state{device="v",state="silent"} 1`,
		`holdfast_server_state{device="w",state="up"} 1`, `holdfast_tags{device="v"} 128`)
	f.ahead.Store(int64(time.Hour)) // patience with it is at an end
	_, err := f.c.Attach(ctx, "v", "me")
	if e := wantCode(t, err, api.CodeUnreachable); !strings.Contains(e.Message, "has not answered since") {
		t.Errorf("%q", e.Message)
	}
	wantCode(t, f.c.Remove(ctx, "v", true), api.CodeUnreachable)
	_, err = f.c.Create(ctx, f.spec("v", "i"))
	wantCode(t, err, api.CodeUnreachable)
	if err := f.m.tree.root.Write("block/v/queue/standby", "on"); !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("write to an attribute: %v", err)
	}
	v.answer()
	f.m.peers.get("v").nudge() // as time does
	f.eventually("v", api.StateLive)
}

// TestDying: a server that was killed and can't end is told from one that is silent, and what it
// waits for is said.
func TestDying(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.create("w", "j")
	v := f.h.server("v")
	// A command is under way.
	v.silence()
	ended := make(chan error, 1)
	p := f.m.peers.get("v")
	came := v.requests()
	go func() {
		_, err := f.c.Attach(ctx, "v", "me")
		ended <- err
	}()
	waitFor(t, "the command, or the silence", func() bool { return v.requests() > came || p.state() == api.ServerSilent })
	f.h.set(func() { f.h.dead[v.pid] = true })
	wantCode(t, <-ended, api.CodeUnreachable)
	f.eventually("v", api.StateDying)
	dev, err := f.c.Device(ctx, "v")
	if err != nil || dev.Server.PID != v.pid || !strings.Contains(dev.Problem, f.image("i").Path) || !strings.Contains(dev.Problem, "was killed and can't end") || !strings.Contains(dev.Advice, "abort") {
		t.Errorf("%+v, %v", dev, err)
	}
	if e := wantCode(t, f.c.Remove(ctx, "v", true), api.CodeUnreachable); !strings.Contains(e.Message, f.image("i").Path) {
		t.Errorf("%q", e.Message)
	}
	if err := f.m.tree.root.Write("block/v/queue/standby_en", "1"); !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("write to an attribute: %v", err)
	}
	if a, err := f.c.Attr(ctx, "block/v/server/state"); err != nil || a.Value != api.ServerDying {
		t.Errorf("%+v, %v", a, err)
	}
	if dev := f.create("x", "k"); dev.State != api.StateLive {
		t.Errorf("%+v", dev)
	}
	// The next manager sees the same, from the record.
	f.restart()
	f.eventually("v", api.StateDying)
	if dev, err := f.c.Device(ctx, "v"); err != nil || !strings.Contains(dev.Problem, f.image("i").Path) {
		t.Errorf("%+v, %v", dev, err)
	}
	// Its storage is back: its last thread ends, and the next one takes over.
	v.kill()
	f.eventually("v", api.StateLive)
}

// TestNoServer: attributes of a device without a server can be read, and not be written.
func TestNoServer(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.arm("v")
	f.h.set(func() { f.h.wanted["v"] = false })
	f.h.server("v").kill()
	f.eventually("v", api.StateRecovering)
	for path, want := range map[string]string{"state": "recovering", "queue/standby": "off", "queue/standby_en": "1", "server/pid": "0", "server/as_of": "0", "held": "0"} {
		if a, err := f.c.Attr(ctx, "block/v/"+path); err != nil || a.Value != want {
			t.Errorf("%s: %+v, %v", path, a, err)
		}
	}
	if err := f.m.tree.root.Write("block/v/queue/standby", "on"); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("%v", err)
	}
	// A command starts it.
	if dev, err := f.c.SetStandby(ctx, "v", true); err != nil || dev.State != api.StateStandby {
		t.Errorf("%+v, %v", dev, err)
	}
	f.eventually("v", api.StateStandby)
}

// TestClockSetBack: times that go backwards make nothing negative, and nothing wait.
func TestClockSetBack(t *testing.T) {
	f := newFixture(t)
	f.stop()
	back := make(chan struct{})
	f.now = func() time.Time {
		now := time.Now().Round(0) // as without a monotonic clock
		select {
		case <-back:
			return now.Add(-24 * time.Hour)
		default:
			return now
		}
	}
	f.start()
	f.create("v", "i")
	close(back)
	if text := f.metrics(); !strings.Contains(text, `holdfast_report_age_seconds{device="v"} `) || strings.Contains(text, `holdfast_report_age_seconds{device="v"} -`) {
		t.Error("the age of the report is missing, or negative")
	}
	if _, err := f.c.Attach(ctx, "v", "me"); err != nil {
		t.Fatal(err)
	}
	if dev, err := f.c.Device(ctx, "v"); err != nil || len(dev.Standby.Consumers) != 1 {
		t.Errorf("%+v, %v: what is shown is of before", dev, err)
	}
	pid := f.h.server("v").pid
	f.h.server("v").kill()
	waitFor(t, "the next server", func() bool {
		dev, err := f.c.Device(ctx, "v")
		return err == nil && dev.State == api.StateLive && dev.Server.PID != pid
	})
	f.h.server("v").event(api.EventParked, "later")
	waitFor(t, "its event", func() bool { return strings.Contains(strings.Join(f.events("v"), " "), api.EventParked) })
}

func TestMetrics(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.arm("v")
	f.wantMetrics(`holdfast_standby{device="v"} 0`, `holdfast_standby_supported{device="v"} 1`, "holdfast_standby_check 1", `holdfast_tags{device="v"} 128`)
	problems, err := promlint.New(strings.NewReader(f.metrics())).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "holdfast_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}
