package kill

import (
	"os"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"
)

var pauseWords = regexp.MustCompile(`(\d+(?:\.\d+)?) ?ms`)

// TestUpgrade: HOLDFAST_UPGRADES upgrades in a row under load.
func TestUpgrade(t *testing.T) {
	upgrades := count(t, "HOLDFAST_UPGRADES", 2)
	s := newServer(t, "--targets", "none")
	g := threeDeltas(t, t.TempDir(), 32<<20, 31)
	w := s.serve("up", g, 12)
	failed := countRequests(t, "block_rq_error", w.disk)
	var longest, slowest float64
	for range upgrades {
		w.advances(100)
		w.Longest()
		said := s.upgrade()
		w.advances(20)
		if ms := w.Longest().Seconds() * 1e3; ms > slowest {
			slowest = ms
		}
		m := pauseWords.FindStringSubmatch(said)
		if m == nil {
			t.Fatalf("holdfast upgrade printed no pause: %q", said)
		}
		pause, err := strconv.ParseFloat(m[1], 64)
		must(t, err)
		longest = max(longest, pause)
		noLies(t, g.model)
	}
	t.Logf("%d upgrades; the longest pause was %.0f ms by the daemon, the slowest request took %.0f ms; %d failed; %v", upgrades, longest, slowest, failed.hits(), w)
	if failed.hits() != 0 {
		t.Errorf("%d requests failed", failed.hits())
	}
	s.remove("up", w)
}

// upgrade has all servers give way to other processes of the same program, and waits for these.
func (s *server) upgrade() string {
	s.t.Helper()
	if s.managed() {
		return s.roll()
	}
	old := s.process.Pid
	said, err := s.run("upgrade")
	if err != nil {
		s.process.Signal(syscall.SIGQUIT) // for the log: what is everybody doing?
		s.deadWithin(time.Minute)
		s.t.Fatal(err)
	}
	s.dies(time.Minute)
	info, err := s.client.Daemon(s.t.Context())
	must(s.t, err)
	if info.PID == old {
		s.t.Fatal("the daemon is still the old one")
	}
	p, err := os.FindProcess(info.PID)
	must(s.t, err)
	s.adopt(p)
	return said
}

// TestUpgradeFails: a binary that can't take over leaves everything as it is.
func TestUpgradeFails(t *testing.T) {
	needSoak(t)
	s := newServer(t, "--targets", "none")
	g := oneDelta(t, t.TempDir(), 32<<20, 32)
	w := s.serve("down", g, 12)
	for name, script := range map[string]string{"fails": "exit 3", "does not run": "\x7fELF", "says nothing": "exec sleep 1000"} {
		if name == "says nothing" && os.Getenv("HOLDFAST_UPGRADES") == "" {
			continue // waits for a time-out
		}
		w.advances(50)
		bad := s.dir + "/bad"
		must(t, os.WriteFile(bad, []byte("#!/bin/sh\n"+script+"\n"), 0o700))
		if out, err := s.run("upgrade", "--binary", bad); err == nil {
			t.Errorf("%s: the upgrade went well: %s", name, out)
		} else {
			t.Logf("%s: %v", name, err)
		}
		w.advances(50)
		if s.dead() {
			t.Fatal("the daemon is dead")
		}
		s.serves("down")
	}
	noLies(t, g.model)
	s.upgrade()
	s.serves("down")
	w.advances(50)
	s.remove("down", w)
}
