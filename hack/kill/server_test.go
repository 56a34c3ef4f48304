package kill

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/hack/faultfs"
	"holdfast/hack/tool"
	"holdfast/ublk"
)

func TestMain(m *testing.M) {
	faultfs.Child() // storage that fails on demand is a process of its own
	// A server that an upgrade brought becomes our child when its parent ends.
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	os.Exit(m.Run())
}

// needVM skips a test that must not run on a machine that somebody uses.
func needVM(t *testing.T) {
	t.Helper()
	if os.Getenv("HOLDFAST_VM") == "" {
		t.Skip("runs in the VM only: make vm")
	}
}

// needSoak skips what make vm has no time for.
func needSoak(t *testing.T) {
	t.Helper()
	needVM(t)
	if os.Getenv("HOLDFAST_KILLS") == "" {
		t.Skip("takes long: make soak")
	}
}

// count is how much a test is to do: a small number where people wait for it, that
// of a variable in a soak.
func count(t *testing.T, variable string, small int) int {
	t.Helper()
	s := os.Getenv(variable)
	if s == "" {
		return small
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number from 1", variable, s)
	}
	return n
}

// onOtherKernel leaves case i to the other kernel, where HOLDFAST_CASES shares them out.
func onOtherKernel(i int) bool {
	return os.Getenv("HOLDFAST_CASES") == []string{"odd", "even"}[i%2]
}

// sharedOut leaves a whole test to the other kernel.
func sharedOut(t *testing.T, i int) {
	t.Helper()
	if onOtherKernel(i) {
		t.Skip("to save time: for the other kernel to test")
	}
}

// server is a holdfast that is killed and started again. Its directories stay.
type server struct {
	t           *testing.T
	dir         string
	program     string
	serveBinary string   // the program of servers; "": program serves devices itself
	besides     bool     // that is where the daemon looks for it: beside its own
	options     []string // of `holdfast daemon`
	env         []string // HOLDFAST_FAILSWITCH=…

	client  *api.Client
	process *os.Process          // the daemon
	ended   chan struct{}        // closed when the process was reaped
	started time.Time            // the daemon was, or a server could be again
	killed  []int                // processes, last
	counted map[string]time.Time // by device: the last event that recoveries has counted
	after   func()               // called when all has ended; nil: nothing
}

// newServer makes one and starts it. With the test go the server and all of the driver's
// devices.
func newServer(t *testing.T, options ...string) *server {
	t.Helper()
	s := makeServer(t, options...)
	s.start()
	s.answers()
	return s
}

// makeServer leaves the starting to the caller.
func makeServer(t *testing.T, options ...string) *server {
	t.Helper()
	needVM(t)
	must(t, tool.Run("modprobe", "ublk_drv"))
	dir := t.TempDir()
	s := &server{t: t, dir: dir, options: options, client: api.NewClient(dir + "/run"), counted: map[string]time.Time{}}
	s.use(program(t))
	t.Cleanup(s.end)
	return s
}

// use makes a program the one that is started from now on.
func (s *server) use(program string) { s.program, s.serveBinary = program, serveProgram(program) }

// program is a holdfast with places to die at.
func program(t *testing.T) string {
	t.Helper()
	path := os.Getenv("HOLDFAST_BINARY")
	if path == "" {
		var err error
		path, err = filepath.Abs("../../bin/holdfast-failpoints")
		must(t, err)
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: make bin/holdfast-failpoints", err)
	}
	for _, s := range info.Settings {
		if s.Key == "-tags" && slices.Contains(strings.Split(s.Value, ","), "failpoints") {
			return path
		}
	}
	t.Fatalf("%s was built without the tag failpoints", path)
	return ""
}

// point is the file by which places are armed.
func (s *server) point() string { return s.dir + "/point" }

// arm has a server, the one at hand or the next, die at a place, and tells how many have
// done so before.
func (s *server) arm(place string) (before int) {
	s.t.Helper()
	name, _, _ := strings.Cut(place, ":")
	before = s.died(name)
	// In one step: it is read at any time.
	must(s.t, os.WriteFile(s.point()+"~", []byte(place+"\n"), 0o600))
	must(s.t, os.Rename(s.point()+"~", s.point()))
	return before
}

func (s *server) disarm() {
	if err := os.Remove(s.point()); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Error(err)
	}
}

// start starts the program and waits for nothing.
func (s *server) start() {
	s.t.Helper()
	log, err := os.OpenFile(s.dir+"/log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	must(s.t, err)
	defer log.Close()
	args := append([]string{"daemon", "--state-dir", s.dir + "/state", "--log-format", "json"}, s.daemonOptions()...)
	cmd := exec.Command(s.program, append(args, s.options...)...)
	cmd.Env = append(os.Environ(), append(s.env, "HOLDFAST_RUN_DIR="+s.dir+"/run", "HOLDFAST_FAILPOINT_FILE="+s.point())...)
	cmd.Stdout, cmd.Stderr = log, log
	s.started = time.Now()
	must(s.t, cmd.Start())
	s.adopt(cmd.Process)
}

// adopt makes a process the one that is killed next.
func (s *server) adopt(p *os.Process) {
	s.process, s.ended = p, make(chan struct{})
	go func(ended chan struct{}) {
		p.Wait()
		close(ended)
	}(s.ended)
}

// answers waits until the daemon does.
func (s *server) answers() {
	s.t.Helper()
	if err := wait(time.Minute, func() error {
		select {
		case <-s.ended:
			s.t.Fatalf("the daemon has ended:\n%s", s.logTail())
		default:
		}
		_, err := s.client.Daemon(s.t.Context())
		return err
	}); err != nil {
		s.t.Fatalf("the daemon does not answer: %v\n%s", err, s.logTail())
	}
}

// dies waits for the daemon's end.
func (s *server) dies(timeout time.Duration) {
	s.t.Helper()
	if !s.deadWithin(timeout) {
		s.t.Fatalf("process %d does not end within %v", s.process.Pid, timeout)
	}
}

func (s *server) deadWithin(timeout time.Duration) bool {
	select {
	case <-s.ended:
		return true
	case <-time.After(timeout):
		return false
	}
}

func (s *server) dead() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// restart starts it and waits until a device is served.
func (s *server) restart(name string) time.Duration {
	s.t.Helper()
	s.start()
	return s.serves(name)
}

// serves waits until a device is in state live, and tells how long that is after the
// start of the daemon.
func (s *server) serves(name string) time.Duration {
	s.t.Helper()
	s.becomes(name, api.StateLive)
	return time.Since(s.started)
}

// becomes waits for a device's state.
func (s *server) becomes(name, state string) *api.Device {
	s.t.Helper()
	var last *api.Device
	if err := wait(2*time.Minute, func() error {
		select {
		case <-s.ended:
			s.t.Fatalf("the daemon has ended:\n%s", s.logTail())
		default:
		}
		d, err := s.client.Device(s.t.Context(), name)
		if err != nil {
			return err
		}
		if last = d; d.State == api.StateLost {
			s.t.Fatalf("%s is lost: %s\n%s", name, d.Problem, s.logTail())
		}
		if d.Server != nil && d.Server.PID != s.serverPID(name) {
			return fmt.Errorf("%s is shown as served by process %d, and its lock has %d", name, d.Server.PID, s.serverPID(name))
		}
		if d.State != state {
			return fmt.Errorf("%s is %s, want %s: %s (%s)", name, d.State, state, d.Problem, d.Advice)
		}
		return nil
	}); err != nil {
		s.t.Fatalf("%v\n%s", err, s.logTail())
	}
	return last
}

// recoveries counts those of a device that have ended since the last call.
func (s *server) recoveries(name string) (n int) {
	s.t.Helper()
	var last time.Time
	must(s.t, s.client.Events(s.t.Context(), api.EventsQuery{Device: name}, func(e api.Event) error {
		if e.Kind == api.EventServed && e.Time.After(s.counted[name]) {
			n++
			last = e.Time
		}
		return nil
	}))
	if n > 0 {
		s.counted[name] = last
	}
	return n
}

// run runs a holdfast command.
func (s *server) run(args ...string) (string, error) {
	cmd := exec.Command(s.program, args...)
	cmd.Env = append(os.Environ(), "HOLDFAST_RUN_DIR="+s.dir+"/run")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("holdfast %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// ok runs a command that must succeed.
func (s *server) ok(args ...string) string {
	s.t.Helper()
	out, err := s.run(args...)
	if err != nil {
		s.t.Fatalf("%v\n%s", err, s.logTail())
	}
	return out
}

// end kills the server and takes what is left from the driver: nobody's
// requests may hang when the test's process ends.
func (s *server) end() {
	if s.t.Failed() {
		s.t.Logf("the end of the logs:\n%s", s.logTail())
		s.keepLogs(s.t)
	}
	if s.process != nil {
		s.process.Kill()
		if !s.deadWithin(time.Minute) {
			s.t.Errorf("process %d does not end", s.process.Pid)
		}
	}
	for _, pid := range s.servers() {
		unix.Kill(pid, unix.SIGKILL)
		if err := wait(time.Minute, func() error {
			if !gone(pid) {
				return fmt.Errorf("process %d does not end", pid)
			}
			return nil
		}); err != nil {
			s.t.Error(err)
		}
	}
	syscall.Unmount(s.dir+"/run/sys", syscall.MNT_DETACH)
	if s.after != nil {
		s.after()
	}
	deleteDevices(s.t)
}

// deleteDevices takes all devices from the driver.
func deleteDevices(t *testing.T) {
	t.Helper()
	ctl, err := ublk.Open("")
	if err != nil {
		t.Error(err)
		return
	}
	defer ctl.Close()
	ids, err := ctl.List()
	if err != nil {
		t.Error(err)
	}
	for _, id := range ids {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		// It waits for nobody who has the disk open.
		if err := ctl.DeleteAsync(ctx, id); err != nil && !errors.Is(err, ublk.ErrNoDevice) {
			t.Errorf("ublkb%d can't be deleted: %v", id, err)
		}
		cancel()
	}
}
