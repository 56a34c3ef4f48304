package kill

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
)

// TestRunDirectory: whatever has become of the run directory when all is started again, devices are
// served, and what says that another process has them is not believed.
func TestRunDirectory(t *testing.T) {
	s := makeServer(t, "--targets", "none")
	s.needServers()
	run := s.dir + "/run"
	must(t, os.Mkdir(run, 0o755))
	const size = "size=1m"
	must(t, unix.Mount("none", run, "tmpfs", 0, size))
	s.after = func() { unix.Unmount(run, unix.MNT_DETACH) }
	s.start()
	s.answers()
	all := s.serveMany("run", 2, 2)
	s.ok("attach", "run-0", "--consumer", "hand")
	s.ok("standby-check", "on")
	remount := func(flags uintptr) {
		t.Helper()
		must(t, unix.Mount("none", run, "", unix.MS_REMOUNT|flags, size))
	}
	nothing := func() {}
	for i, c := range []struct {
		name         string
		damage, mend func()
		check        func()
	}{
		{"a stale lock file", func() {
			must(t, os.WriteFile(s.deviceDir("run-0")+"/lock", []byte("1\n"), 0o600))
		}, nothing, nothing},
		{"a lock file that says nothing", func() {
			must(t, os.WriteFile(s.deviceDir("run-0")+"/lock", []byte("\x00\x00garbage"), 0o600))
		}, nothing, nothing},
		{"of before a reboot", func() {
			must(t, os.WriteFile(run+"/boot", []byte("00000000-0000-4000-8000-000000000000\n"), 0o644))
			must(t, os.MkdirAll(run+"/devices/ghost", 0o700))
			must(t, os.WriteFile(run+"/devices/ghost/lock", []byte("1\n"), 0o600))
			must(t, os.WriteFile(run+"/claims/1:2", []byte("ghost\n"), 0o600))
		}, nothing, func() {
			for _, file := range []string{"/devices/ghost", "/claims/1:2"} {
				if _, err := os.Stat(run + file); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s of an earlier boot is still there: %v", file, err)
				}
			}
		}},
		{"gone", func() {
			for _, dir := range []string{"/devices", "/claims", "/key", "/key.json", "/manager"} {
				must(t, os.RemoveAll(run+dir))
			}
		}, nothing, nothing},
		{"a record's copy damaged", func() {
			must(t, os.WriteFile(s.deviceDir("run-0")+"/record.json", []byte("{"), 0o600))
		}, nothing, nothing},
		{"full", func() {
			f, err := os.Create(run + "/ballast")
			must(t, err)
			defer f.Close()
			for err == nil {
				_, err = f.Write(make([]byte, 4096))
			}
		}, func() { must(t, os.Remove(run+"/ballast")) }, nothing},
		{"the clock set back", func() { setClock(t, -365*24*time.Hour) }, func() { setClock(t, 365*24*time.Hour) }, nothing},
		{"read-only", func() { remount(unix.MS_RDONLY) }, func() { remount(0) }, nothing},
	} {
		if onOtherKernel(i) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			s.t = t
			all.advance(10)
			s.kill()
			// Its mount would keep what is below it.
			unix.Unmount(run+"/sys", unix.MNT_DETACH)
			c.damage()
			if c.name == "read-only" {
				// There can be no socket; somebody is told, and nothing is broken.
				s.start()
				if !s.deadWithin(time.Minute) {
					t.Error("a manager lives without its socket")
				}
				if text := s.daemonLog(); !strings.Contains(text, "read-only") {
					t.Errorf("the log says: %s", text)
				}
				c.mend()
				s.start()
				s.answers()
			} else {
				s.start()
				s.answers()
			}
			for name := range all {
				s.waitServer(name)
				s.becomes(name, api.StateLive)
			}
			all.advance(10)
			c.check()
			must(t, readTree(run+"/sys/block/run-0"))
			s.ok("list")
			// A server's death in this state, too.
			s.killServer("run-0")
			s.back("run-0")
			all["run-0"].advances(10)
			c.mend()
			all.sound()
			snap, err := s.client.Snapshot(t.Context())
			must(t, err)
			if len(snap.Devices) != 2 || !snap.Key.On && c.name != "gone" && c.name != "of before a reboot" {
				t.Errorf("%d devices; standby check %+v", len(snap.Devices), snap.Key)
			}
			if d, err := s.client.Device(t.Context(), "run-0"); err != nil || fmt.Sprint(d.Standby.Consumers) != "[hand]" {
				t.Errorf("a lease by hand is gone: %+v, %v", d, err)
			}
			s.ok("standby-check", "on")
		})
	}
	s.t = t
	all.remove(s)
}

// setClock sets the clock of the machine, which is the test's own.
func setClock(t *testing.T, by time.Duration) {
	t.Helper()
	tv := unix.NsecToTimeval(time.Now().Add(by).UnixNano())
	must(t, unix.Settimeofday(&tv))
}

// TestTwoManagers: a second manager of the same directories is refused, and a second server of a
// device waits for the first, and takes over from it when that dies.
func TestTwoManagers(t *testing.T) {
	sharedOut(t, 1)
	s := newServer(t, "--targets", "none")
	s.needServers()
	w := s.serve("two", oneDelta(t, t.TempDir(), 8<<20, 71), 4)
	w.advances(20)
	other := exec.Command(s.program, "daemon", "--state-dir", s.dir+"/state", "--targets", "none", "--launcher", "fork", "--serve-binary", s.serveBinary)
	other.Env = append(os.Environ(), "HOLDFAST_RUN_DIR="+s.dir+"/run")
	out, err := other.CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprint(s.process.Pid)) {
		t.Errorf("a second manager: %v: %s", err, out)
	}
	first := s.waitServer("two")
	second := exec.Command(s.serveBinary, "--run-dir", s.dir+"/run", "--state-dir", s.dir+"/state", "two")
	log, err := os.Create(filepath.Join(s.dir, "second.log"))
	must(t, err)
	defer log.Close()
	second.Stdout, second.Stderr = log, log
	must(t, second.Start())
	ended := make(chan struct{})
	go func() { second.Wait(); close(ended) }()
	t.Cleanup(func() { second.Process.Kill(); <-ended })
	time.Sleep(2 * time.Second) // long enough to do harm
	w.advances(50)
	if pid := s.waitServer("two"); pid != first {
		t.Errorf("a second server has taken the device from the first: process %d, then %d", first, pid)
	}
	if d, err := s.client.Device(t.Context(), "two"); err != nil || d.State != api.StateLive || d.Server.PID != first {
		t.Errorf("%+v, %v", d, err)
	}
	// Whichever of those that wait gets the lock, there is one server, and it is the one shown.
	for range 3 {
		s.killServer("two")
		s.back("two")
		w.advances(20)
	}
	second.Process.Kill()
	<-ended
	w.advances(20)
	s.waitServer("two", second.Process.Pid)
	s.becomes("two", api.StateLive)
	w.advances(20)
	s.remove("two", w)
}
