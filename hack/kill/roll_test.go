package kill

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/api"
)

// roll upgrades all servers, which must all succeed, and tells the longest pause.
func (s *server) roll() string {
	s.t.Helper()
	was := s.serverPIDs()
	out, err := s.run("upgrade", "--json")
	if err != nil {
		s.t.Fatalf("%v\n%s", err, s.logTail())
	}
	var r api.UpgradeResult
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		s.t.Fatalf("holdfast upgrade --json: %v: %s", err, out)
	}
	if len(r.Servers) != len(was) {
		s.t.Errorf("upgrade tells of %d servers, there are %d: %s", len(r.Servers), len(was), out)
	}
	for _, u := range r.Servers {
		if u.Result != api.UpgradeDone {
			s.t.Errorf("upgrade of %s: %s: %s", u.Device, u.Result, u.Error)
		}
		if now := s.waitServer(u.Device); now == was[u.Device] {
			s.t.Errorf("%s is still served by process %d after its upgrade", u.Device, now)
		}
		s.becomes(u.Device, api.StateLive)
	}
	return fmt.Sprintf("%.0f ms", r.PauseMS)
}

// serverPIDs are the processes of all devices.
func (s *server) serverPIDs() map[string]int {
	s.t.Helper()
	snap, err := s.client.Snapshot(s.t.Context())
	must(s.t, err)
	pids := map[string]int{}
	for _, d := range snap.Devices {
		pids[d.Name] = s.waitServer(d.Name)
	}
	return pids
}

// loads are devices under load.
type loads map[string]*load

// serveMany makes n devices that are worked on, not at full speed: many processes are to start beside it on
// an emulated machine.
func (s *server) serveMany(prefix string, n, workers int) loads {
	s.t.Helper()
	all := loads{}
	for k := range n {
		name := fmt.Sprintf("%s-%d", prefix, k)
		w := s.serve(name, oneDelta(s.t, s.t.TempDir(), 4<<20, uint64(100+k)), workers, "--queues", "1", "--depth", "16")
		w.Rest(50 * time.Millisecond)
		all[name] = w
	}
	return all
}

func (l loads) advance(n uint64) {
	for _, w := range l {
		w.t.Helper()
		w.advances(n)
	}
}

// sound says that nobody has seen an error, nor anything wrong.
func (l loads) sound() {
	for name, w := range l {
		w.t.Helper()
		noLies(w.t, w.g.model)
		if n, words := w.g.model.Errors(); n != 0 {
			w.t.Errorf("%s: %d operations failed: %v", name, n, words)
		}
	}
}

func (l loads) remove(s *server) {
	s.t.Helper()
	for name, w := range l {
		s.remove(name, w)
	}
}

// TestRolls: upgrades of HOLDFAST_ROLL_DEVICES devices under load, HOLDFAST_ROLLS times; the manager stays.
func TestRolls(t *testing.T) {
	sharedOut(t, 1)
	rolls, devices := count(t, "HOLDFAST_ROLLS", 2), count(t, "HOLDFAST_ROLL_DEVICES", 4)
	s := newServer(t, "--targets", "none")
	s.needServers()
	all := s.serveMany("roll", devices, 2)
	manager := s.process.Pid
	for range rolls {
		all.advance(10)
		t.Logf("longest pause %s", s.roll())
		all.sound()
	}
	if info, err := s.client.Daemon(t.Context()); err != nil || info.PID != manager {
		t.Errorf("the manager was process %d: %+v, %v", manager, info, err)
	}
	all.advance(10)
	all.remove(s)
}

// TestRollStops: a program that can't serve ends the roll at the first device that it is tried
// with. That one goes back to the program before, the others stay with it, and all are served.
func TestRollStops(t *testing.T) {
	sharedOut(t, 0)
	s := newServer(t, "--targets", "none")
	s.needServers()
	all := s.serveMany("bad", 3, 2)
	for _, c := range []struct {
		name, script string
		soak         bool // waits for a time-out
	}{
		{"fails", "exit 1", false},
		{"fails after telling its version", `case "$*" in *-version*) echo "holdfast-serve 9.9.9"; exit 0;; esac; exit 1`, false},
		{"isn't a program", "\x7fELF", false},
		{"hangs", "exec sleep 1000", true},
		{"hangs after telling its version", `case "$*" in *-version*) echo "holdfast-serve 9.9.9"; exit 0;; esac; exec sleep 1000`, true},
	} {
		if c.soak && os.Getenv("HOLDFAST_ROLLS") == "" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			all.advance(10)
			was := s.serverPIDs()
			bad := filepath.Join(s.dir, "bad")
			must(t, os.WriteFile(bad, []byte("#!/bin/sh\n"+c.script+"\n"), 0o700))
			out, err := s.run("upgrade", "--binary", bad)
			if err == nil {
				t.Errorf("the upgrade went well: %s", out)
			} else {
				t.Logf("%v", err)
			}
			now, changed := s.serverPIDs(), 0
			for name := range was {
				s.becomes(name, api.StateLive)
				if now[name] != was[name] {
					changed++
				}
			}
			if changed > 1 {
				t.Errorf("%d devices have other servers than before: the roll went on after a failure", changed)
			}
			if s.dead() {
				t.Fatal("the manager is dead")
			}
			all.advance(10)
			all.sound()
			for name := range was {
				if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.waitServer(name))); err != nil || exe != s.serveBinary {
					t.Errorf("%s is served by %s, %v; want %s", name, exe, err, s.serveBinary)
				}
			}
		})
	}
	// What failed is forgotten: a server that dies comes back with the program that works.
	s.killServer("bad-0")
	s.back("bad-0")
	all.advance(10)
	s.roll()
	all.remove(s)
}
