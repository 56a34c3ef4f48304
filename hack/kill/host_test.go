package kill

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
)

// oldProgram is the daemon before servers had processes of their own, without which a test of the
// way from there, or of what it could not do, is skipped.
func oldProgram(t *testing.T) string {
	t.Helper()
	needVM(t)
	path := os.Getenv("HOLDFAST_OLD_BINARY")
	if path == "" {
		t.Skip("HOLDFAST_OLD_BINARY names no program of commit e9f92d4")
	}
	if serveProgram(path) != "" {
		t.Fatalf("%s has servers beside it: it is none of e9f92d4", path)
	}
	return path
}

// soon is far more than anything here takes that waits for nothing, and far less than storage
// that hangs until the test ends it.
const soon = time.Minute

// TestServesBesideHungStorage: all processes of a host are killed while the storage of one of its two
// devices answers nothing, and the manager is started again. The other device is served and seen
// meanwhile; this one says what it waits for, and is served when its storage is back.
func TestServesBesideHungStorage(t *testing.T) {
	for i, in := range []string{"transfer", "close"} {
		if onOtherKernel(i) {
			continue
		}
		t.Run(in, func(t *testing.T) {
			s := makeServer(t, "--targets", "none")
			s.needServers()
			e := elsewhere(s, in == "close")
			e.start()
			if err := e.servesBeside(t); err != nil {
				t.Fatalf("%v\n%s", err, e.logTail())
			}
			e.dyingIsTold(t)
			// Nor does the next manager wait, that finds the other device served.
			healthy := e.serverPID("well")
			e.killDaemon()
			e.start()
			if err := e.servesBeside(t); err != nil {
				t.Fatalf("%v\n%s", err, e.logTail())
			}
			if pid := e.serverPID("well"); pid != healthy {
				t.Errorf("a new manager has replaced the server of a device that was served: %d, then %d", healthy, pid)
			}
			e.dyingIsTold(t)
			e.finish()
		})
	}
}

// TestOneDaemonIsStuckByHungStorage is the control: the daemon that serves all devices itself can't serve the
// healthy one.
func TestOneDaemonIsStuckByHungStorage(t *testing.T) {
	path := oldProgram(t)
	s := makeServer(t, "--targets", "none")
	s.use(path)
	e := elsewhere(s, false)
	e.start()
	err := e.servesBeside(t)
	if err == nil {
		t.Error("it serves the healthy device beside hung storage: the test with servers proves nothing")
	}
	t.Logf("it fails: %v", err)
	if e.dead() {
		e.finish()
		return
	}
	e.t.Error("it lives, and serves nothing")
}

// servesBeside waits for the healthy device to be served, and reads and writes it, while the
// storage of the other one hangs. Then all that there is to see must be seen at once.
func (e *beside) servesBeside(t *testing.T) error {
	t.Helper()
	began := time.Now()
	if err := wait(soon, func() error {
		if e.dead() {
			return fmt.Errorf("the daemon has ended:\n%s", e.daemonLog())
		}
		d, err := e.client.Device(t.Context(), "well")
		if err == nil && (d.State != api.StateLive || e.managed() && d.Server.State != api.ServerUp) {
			err = fmt.Errorf("well is %s: %s", d.State, d.Problem)
		}
		return err
	}); err != nil {
		return err
	}
	served := time.Since(began)
	e.w.advances(50)
	answered := time.Since(began)
	var times []string
	timed := func(what string, do func() error) error {
		began := time.Now()
		done := make(chan error, 1)
		go func() { done <- do() }()
		select {
		case err := <-done:
			times = append(times, fmt.Sprintf("%s %v", what, round(time.Since(began))))
			return err
		case <-time.After(soon):
			return fmt.Errorf("%s has not answered after %v", what, soon)
		}
	}
	sys := e.dir + "/run/sys"
	for _, name := range []string{"well", "hangs"} {
		if err := timed("tree of "+name, func() error { return readTree(sys + "/block/" + name) }); err != nil {
			return err
		}
		if err := timed("why "+name, func() error { _, err := e.run("why", name); return err }); err != nil {
			return err
		}
		if err := timed("show "+name, func() error { _, err := e.run("show", name); return err }); err != nil {
			return err
		}
	}
	if err := timed("list", func() error { _, err := e.run("list"); return err }); err != nil {
		return err
	}
	if text, err := os.ReadFile(sys + "/block/well/state"); err != nil || strings.TrimSpace(string(text)) != api.StateLive {
		return fmt.Errorf("the tree says that well is %q, %v", text, err)
	}
	if n := e.storage.Rule(e.rule).Hanging; n == 0 {
		return fmt.Errorf("nothing hangs any more: this was easy")
	}
	select {
	case <-e.old:
		return fmt.Errorf("the killed process has ended: this was easy")
	default:
	}
	t.Logf("well is live %v after the start, 50 requests later it is %v; %s", round(served), round(answered), strings.Join(times, ", "))
	return nil
}

func (s *server) daemonLog() string {
	text, _ := os.ReadFile(s.dir + "/log")
	return string(text[max(0, len(text)-1500):])
}

// readTree reads all attributes below a directory. What has no value now has an error for that.
func readTree(dir string) error {
	n := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := e.Info(); err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o444 == 0 {
			return err
		}
		n++
		_, err = os.ReadFile(path)
		return err
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("%s is empty", dir)
	}
	return err
}

// dyingIsTold looks at what is told of the device whose killed server can't end.
func (e *beside) dyingIsTold(t *testing.T) {
	t.Helper()
	pid := e.hungPID
	d, err := e.client.Device(t.Context(), "hangs")
	must(t, err)
	// Its name may not be new: the process is.
	if d.Server == nil || d.Server.PID != pid || d.Server.State != api.ServerDying {
		t.Errorf("hangs: state %s, server %+v; want %s, process %d", d.State, d.Server, api.ServerDying, pid)
	}
	if d.State != api.StateDying {
		t.Errorf("hangs is %s, want %s", d.State, api.StateDying)
	}
	why := e.ok("why", "hangs")
	for _, want := range []string{fmt.Sprintf("process %d", pid), e.storage.Dir, "abort"} {
		if !strings.Contains(why, want) {
			t.Errorf("why does not say %q: %s", want, why)
		}
	}
	for attr, want := range map[string]string{"pid": fmt.Sprint(pid), "state": api.ServerDying} {
		text, err := os.ReadFile(e.dir + "/run/sys/block/hangs/server/" + attr)
		if err != nil || strings.TrimSpace(string(text)) != want {
			t.Errorf("server/%s of hangs in the tree: %q, %v, want %s", attr, text, err, want)
		}
	}
	var list struct{ Devices []api.Device }
	must(t, json.Unmarshal([]byte(e.ok("list", "--json")), &list))
	for _, d := range list.Devices {
		if d.Server == nil || d.Name == "hangs" && d.Server.State != api.ServerDying || d.Name == "well" && d.Server.State != api.ServerUp {
			t.Errorf("list: %s is %s, its server %+v", d.Name, d.State, d.Server)
		}
	}
	select {
	case err := <-e.written:
		t.Errorf("the write that hangs was answered: %v", err)
		e.written <- err
	default:
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("process %d: %v", pid, err)
	}
}
