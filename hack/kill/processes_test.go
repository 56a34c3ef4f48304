package kill

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/hack/tool"
	"holdfast/state"
)

// A program beside which there is none of servers serves all devices itself: killing a device's
// server is killing the daemon, and somebody has to start it again. Else the daemon is a manager,
// each device has a process of its own, and the manager starts that again. Only this file knows
// the difference.

// serveProgram is the program of servers that belongs to one of the daemon; "": it needs none.
func serveProgram(program string) string {
	dir, name := filepath.Split(program)
	path := filepath.Join(dir, strings.Replace(name, "holdfast", "holdfast-serve", 1))
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// managed says that each device has a server of its own.
func (s *server) managed() bool { return s.serveBinary != "" }

// needServers skips a test of what only a daemon with a server for each device can do.
func (s *server) needServers() {
	s.t.Helper()
	if !s.managed() {
		s.t.Skip("the daemon serves all devices itself: there is no holdfast-serve beside it")
	}
}

// daemonOptions are those that say which program servers are of.
func (s *server) daemonOptions() []string {
	if !s.managed() || s.besides {
		return nil
	}
	return []string{"--launcher", "fork", "--serve-binary", s.serveBinary}
}

// deviceDir is what a device's server has in the run directory.
func (s *server) deviceDir(name string) string { return s.dir + "/run/devices/" + name }

// serverPID is the process that has a device, 0 if none does.
func (s *server) serverPID(name string) int {
	s.t.Helper()
	if !s.managed() {
		if s.dead() {
			return 0
		}
		return s.process.Pid
	}
	pid, _ := state.Probe(s.dir+"/run", name)
	return pid // also 0 if it is about to say so
}

// waitServer waits until a device has a server that is none of some processes.
func (s *server) waitServer(name string, not ...int) (pid int) {
	s.t.Helper()
	if err := wait(time.Minute, func() error {
		if pid = s.serverPID(name); pid == 0 || slices.Contains(not, pid) {
			return fmt.Errorf("%s has no new server (lock: process %d)", name, pid)
		}
		return nil
	}); err != nil {
		s.t.Fatalf("%v\n%s", err, s.logTail())
	}
	return pid
}

// servers are all processes of servers with this run directory, also those that have no lock yet.
// One that was killed and can't end isn't found.
func (s *server) servers() (pids []int) {
	if !s.managed() {
		return nil
	}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		args := bytes.Split(text, []byte{0})
		if string(args[0]) != s.serveBinary {
			continue
		}
		environ, _ := os.ReadFile(filepath.Dir(file) + "/environ")
		run := []byte(s.dir + "/run")
		mine := slices.ContainsFunc(args, func(a []byte) bool { return bytes.HasSuffix(a, run) }) ||
			slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(e []byte) bool { return bytes.Equal(e, append([]byte("HOLDFAST_RUN_DIR="), run...)) })
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && mine {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill kills all that there is, the manager first, as it would start servers again, and waits for
// its end.
func (s *server) kill() {
	s.t.Helper()
	s.killDaemon()
	if err := wait(time.Minute, func() error {
		pids := s.servers()
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
			gone(pid)
		}
		if len(pids) != 0 {
			return fmt.Errorf("there still are processes %v", pids)
		}
		return nil
	}); err != nil {
		s.t.Fatal(err)
	}
}

// killDaemon kills the daemon, and no server of a manager.
func (s *server) killDaemon() {
	s.t.Helper()
	s.killed = append(s.killed[:0], s.process.Pid)
	s.process.Kill()
	s.dies(time.Minute)
}

// killServer kills the process that serves a device, and waits for its end.
func (s *server) killServer(name string) {
	s.t.Helper()
	if !s.managed() {
		s.killDaemon()
		return
	}
	pid := s.waitServer(name)
	s.killed = append(s.killed[:0], pid)
	unix.Kill(pid, unix.SIGKILL)
	s.ends(pid)
	s.started = time.Now()
}

// ends waits for the end of a process.
func (s *server) ends(pid int) {
	s.t.Helper()
	if !s.managed() {
		s.dies(time.Minute)
		return
	}
	if err := wait(time.Minute, func() error {
		if !gone(pid) {
			return fmt.Errorf("process %d does not end", pid)
		}
		return nil
	}); err != nil {
		s.t.Fatal(err)
	}
}

// begin starts the daemon if there is none.
func (s *server) begin() {
	s.t.Helper()
	if s.process == nil || s.dead() {
		s.start()
	}
}

// back has a device served again after a kill of its server, by another process, and tells how
// long that took.
func (s *server) back(name string) time.Duration {
	s.t.Helper()
	s.begin()
	began := s.started
	s.waitServer(name, s.killed...)
	s.serves(name)
	return time.Since(began)
}

// gone says whether a process has ended. If it became our child it is reaped.
func gone(pid int) bool {
	if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err == nil {
		return got == pid
	}
	return unix.Kill(pid, 0) == unix.ESRCH
}

// logs are the files that processes of ours write their logs to.
func (s *server) logs() []string {
	files, _ := filepath.Glob(s.dir + "/run/devices/*/log*")
	return append([]string{s.dir + "/log"}, files...)
}

// logTail is the end of the logs.
func (s *server) logTail() string {
	var tails strings.Builder
	for _, file := range s.logs() {
		text, _ := os.ReadFile(file)
		fmt.Fprintf(&tails, "%s:\n%s\n", file, text[max(0, len(text)-4000):])
	}
	return tails.String()
}

// died counts how often the logs say that a process died at a place.
func (s *server) died(place string) (n int) {
	for _, file := range s.logs() {
		text, _ := os.ReadFile(file)
		n += strings.Count(string(text), "failpoint: "+place+"\n")
	}
	return n
}

// keepLogs saves the whole of the logs where the VM's results go.
func (s *server) keepLogs(t *testing.T) {
	test := strings.ReplaceAll(t.Name(), "/", "-")
	for _, file := range s.logs() {
		name := test
		if device := filepath.Base(filepath.Dir(file)); file != s.logs()[0] {
			name += "-" + device
		}
		tool.Run("cp", file, "/results/"+name+".log")
	}
}
