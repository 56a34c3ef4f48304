// Package servertest runs an example server from its own tests, as a script would.
package servertest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"holdfast/ublk"
)

const asServer = "HOLDFAST_EXAMPLE_MAIN"

// Main is for TestMain: the test binary is the server when Start or Run made the process.
func Main(m *testing.M, main func()) {
	if os.Getenv(asServer) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asServer+"=1")
	return cmd
}

// Run runs a server that is to end by itself, and gives its exit code and standard error.
func Run(t *testing.T, args ...string) (code int, stderr string) {
	t.Helper()
	cmd := command(t, args...)
	out, errs := new(bytes.Buffer), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if out.Len() > 0 {
		t.Errorf("it printed %q to standard output", out)
	}
	return cmd.ProcessState.ExitCode(), errs.String()
}

// A Server is one that serves.
type Server struct {
	t     *testing.T
	cmd   *exec.Cmd
	out   *bufio.Reader
	errs  *bytes.Buffer
	Path  string            // of the block device
	Says  map[string]string // the first line
	ended bool
}

// Start starts a server and waits for its device. Without the driver it skips the test, but in a
// VM of hack/vm.
func Start(t *testing.T, args ...string) *Server {
	t.Helper()
	needDriver(t)
	s := &Server{t: t, cmd: command(t, args...), errs: new(bytes.Buffer)}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out, s.cmd.Stderr = bufio.NewReader(out), s.errs
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !s.ended {
			_ = s.cmd.Process.Kill()
			_ = s.cmd.Wait()
		}
	})
	s.Says = s.line()
	s.Path = s.Says["device"]
	if _, err := os.Stat(s.Path); err != nil {
		t.Fatalf("it says %v: %v", s.Says, err)
	}
	return s
}

// line reads one line of KEY=VALUE.
func (s *Server) line() map[string]string {
	s.t.Helper()
	text, err := s.out.ReadString('\n')
	if err != nil {
		_ = s.cmd.Wait()
		s.ended = true
		s.t.Fatalf("a line %q, %v; it ended: %v\n%s", text, err, s.cmd.ProcessState, s.errs)
	}
	says := map[string]string{}
	for f := range strings.FieldsSeq(text) {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			s.t.Fatalf("%q is not KEY=VALUE: %q", f, text)
		}
		says[key] = value
	}
	return says
}

// Signal sends a signal, and End expects the server's end.
func (s *Server) Signal(sig os.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// End takes the server's last line, and fails unless the server ended well and its device is gone.
func (s *Server) End() map[string]string {
	s.t.Helper()
	says := s.line()
	rest, _ := io.ReadAll(s.out)
	err := s.cmd.Wait()
	s.ended = true
	if err != nil || len(rest) > 0 || s.errs.Len() > 0 {
		s.t.Errorf("it ended with %v, after %q and\n%s", err, rest, s.errs)
	}
	// The last user's close may still be on its way through the kernel.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(s.Path); errors.Is(err, os.ErrNotExist) {
			return says
		} else if time.Now().After(deadline) {
			s.t.Fatalf("%s is still there (%v)", s.Path, err)
		}
	}
}

// Paths runs fn with the flag for each data path that this kernel has.
func Paths(t *testing.T, fn func(t *testing.T, flag string)) {
	for _, path := range []string{"copy", "zero-copy"} {
		t.Run(path, func(t *testing.T) {
			if why := noZeroCopy(t); why != nil && path == "zero-copy" {
				t.Skip(why)
			}
			fn(t, "-"+path)
		})
	}
}

// RefusesZeroCopy has a server be asked for zero copy where the driver has none.
func RefusesZeroCopy(t *testing.T, args ...string) {
	t.Helper()
	why := noZeroCopy(t)
	if why == nil {
		t.Skip("this driver has zero copy")
	}
	if code, stderr := Run(t, append([]string{"-zero-copy"}, args...)...); code != 1 || !strings.Contains(stderr, why.Error()) {
		t.Errorf("exit code %d, and it says %q", code, stderr)
	}
}

// noZeroCopy says what the driver lacks for it; nil: nothing.
func noZeroCopy(t *testing.T) error {
	t.Helper()
	err := needDriver(t).Require(t.Context(), ublk.FeatureAutoBufReg|ublk.FeatureZeroCopy|ublk.FeatureUserCopy)
	var missing *ublk.MissingFeatureError
	if err != nil && !errors.As(err, &missing) {
		t.Fatal(err)
	}
	return err
}

func needDriver(t *testing.T) *ublk.Control {
	t.Helper()
	inVM := os.Getenv("HOLDFAST_VM") != ""
	if inVM {
		if out, err := exec.Command("modprobe", "ublk_drv").CombinedOutput(); err != nil {
			t.Fatalf("modprobe ublk_drv: %v\n%s", err, out)
		}
	}
	c, err := ublk.Open("")
	if err != nil {
		if !inVM && (errors.Is(err, ublk.ErrNoDriver) || errors.Is(err, ublk.ErrPermission)) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Fio runs one job with checksums on the device.
func (s *Server) Fio(args ...string) {
	s.t.Helper()
	cmd := exec.Command("fio", append([]string{
		"--name=job", "--filename=" + s.Path, "--direct=1", "--ioengine=io_uring", "--iodepth=16", "--randseed=4711", "--size=4M", "--rw=randrw",
	}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Errorf("%v: %v\n%s", cmd.Args, err, out)
	}
}

// Stop has another process stop the device, as an operator may.
func (s *Server) Stop() {
	s.t.Helper()
	var id int
	if _, err := fmt.Sscanf(s.Path, "/dev/ublkb%d", &id); err != nil {
		s.t.Fatal(err)
	}
	if err := needDriver(s.t).Stop(s.t.Context(), id); err != nil {
		s.t.Fatal(err)
	}
}
