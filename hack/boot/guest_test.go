package boot

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// guest is the machine that the test runs on.
type guest struct{ *testing.T }

// needSystemd skips a test that is not alone on a machine of its own with systemd.
func needSystemd(t *testing.T) guest {
	t.Helper()
	if os.Getenv("HOLDFAST_VM_INIT") != "systemd" {
		t.Skip("runs in a VM with systemd only: make boot")
	}
	return guest{t}
}

// try runs a command; the error has its output.
func (g guest) try(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		err = fmt.Errorf("%s %q: %w: %s", name, args, err, text)
	}
	return text, err
}

// run runs a command that must succeed.
func (g guest) run(name string, args ...string) string {
	g.Helper()
	out, err := g.try(name, args...)
	if err != nil {
		g.Fatal(err)
	}
	return out
}

// until waits for a condition.
func (g guest) until(what string, ok func() bool) {
	g.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > 2*time.Minute {
			g.Fatalf("waited in vain: %s\n%s", what, g.journal())
		}
		time.Sleep(50 * time.Millisecond)
	}
	g.Logf("%.1f s: %s", time.Since(began).Seconds(), what)
}

func (g guest) journal() string {
	out, _ := g.try("journalctl", "-b", "-u", "holdfast*", "--no-pager", "-n", "80", "-o", "short-monotonic")
	return out
}

// unit is a property of holdfast.service, the manager.
func (g guest) unit(property string) string {
	g.Helper()
	return g.run("systemctl", "show", "holdfast.service", "--value", "-p", property)
}

// serverUnit is the unit of a device's server; the names here need no escapes.
func serverUnit(name string) string { return "holdfast-device@" + name + ".service" }

// server is a property of it.
func (g guest) server(name, property string) string {
	g.Helper()
	return g.run("systemctl", "show", serverUnit(name), "--value", "-p", property)
}

// served waits until another server than that of the process number serves the device, and
// returns its process number.
func (g guest) served(before, name string) string {
	g.Helper()
	g.until("a server that serves "+name, func() bool {
		return g.server(name, "ActiveState") == "active" && g.server(name, "MainPID") != before && g.state(name) == "live"
	})
	return g.server(name, "MainPID")
}

// managed waits until another manager than that of the process number answers, and returns its
// process number.
func (g guest) managed(before string) string {
	g.Helper()
	g.until("a manager", func() bool {
		_, err := g.try("holdfast", "list")
		return err == nil && g.unit("ActiveState") == "active" && g.unit("MainPID") != before
	})
	return g.unit("MainPID")
}

// progress sees that a load goes on.
func (g guest) progress(l *load) {
	g.Helper()
	n := l.n.Load()
	g.until("some progress", func() bool { return l.n.Load() > n+5 })
}

// state is a device's; "" if there is none, or nobody to ask.
func (g guest) state(name string) string {
	out, err := exec.Command("holdfast", "show", name, "--json").Output()
	var dev struct{ State string }
	if err != nil || json.Unmarshal(out, &dev) != nil {
		return ""
	}
	return dev.State
}

func (g guest) write(path, text string) {
	g.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		g.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		g.Fatal(err)
	}
}

func (g guest) read(path string) string {
	g.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		g.Fatal(err)
	}
	return string(b)
}

// A load writes small files to a directory, each durable before the next, until it is stopped.
type load struct {
	dir   string
	stop  chan struct{}
	ended chan error
	n     atomic.Int64 // written
}

func (g guest) load(dir string) *load {
	l := &load{dir: dir, stop: make(chan struct{}), ended: make(chan error, 1)}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		g.Fatal(err)
	}
	go func() { l.ended <- l.write() }()
	return l
}

func content(n int64) []byte { return []byte(strings.Repeat(fmt.Sprintf("file %d\n", n), 1000)) }

func (l *load) write() error {
	for {
		select {
		case <-l.stop:
			return nil
		default:
		}
		f, err := os.Create(fmt.Sprintf("%s/%d", l.dir, l.n.Load()%500))
		if err != nil {
			return err
		}
		if _, err = f.Write(content(l.n.Load())); err == nil {
			err = f.Sync()
		}
		f.Close()
		if err != nil {
			return err
		}
		l.n.Add(1)
		time.Sleep(time.Millisecond)
	}
}

// end stops the load, which must not have seen an error, and looks at the files.
func (g guest) end(l *load) {
	g.Helper()
	close(l.stop)
	select {
	case err := <-l.ended:
		if err != nil {
			g.Fatalf("the file system's user sees an error: %v\n%s", err, g.journal())
		}
	case <-time.After(2 * time.Minute):
		g.Fatalf("the file system's user hangs\n%s", g.journal())
	}
	n := l.n.Load()
	for i := max(0, n-500); i < n; i++ {
		if got := g.read(fmt.Sprintf("%s/%d", l.dir, i%500)); got != string(content(i)) {
			g.Fatalf("file %d has %.20q", i, got)
		}
	}
	g.Logf("%d files were written, each with a sync", n)
}

// goingDown marks in the kernel's log where the way down begins.
const goingDown = "hack/boot is going down"

const phaseFile = "/var/lib/holdfast-boot/phase"

// phase is how many reboots the test has behind it.
func (g guest) phase() int {
	n := 0
	if b, err := os.ReadFile(phaseFile); err == nil {
		fmt.Sscan(string(b), &n)
	}
	return n
}

// reboot shuts the machine down with whatever is mounted, and doesn't return.
func (g guest) reboot() {
	g.write(phaseFile, fmt.Sprint(g.phase()+1))
	g.run("sync", phaseFile)
	g.write("/dev/kmsg", goingDown)
	g.run("systemctl", "reboot")
	time.Sleep(5 * time.Minute)
	g.Fatal("the machine does not go down")
}

// wayDown is what the console said from the last "systemctl reboot" to this boot.
func (g guest) wayDown() string {
	g.Helper()
	log := g.read("/results/console.log")
	boots := strings.Split(log, "Linux version ")
	if len(boots) < 3 { // before the first, and at least two
		g.Fatalf("%d boots in the console's log", len(boots)-1)
	}
	_, down, ok := strings.Cut(boots[len(boots)-2], goingDown)
	if !ok {
		g.Fatal("the console's log has no way down")
	}
	return down
}
