package kill

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/ublk"
)

// TestMaking: the server is killed while it makes a device, or removes one. The
// next one serves it, or knows that it doesn't, and nothing is left in the driver
// that nobody knows.
func TestMaking(t *testing.T) {
	needSoak(t)
	kills := count(t, "HOLDFAST_VARIANT_KILLS", 4)
	s := newServer(t, "--targets", "none")
	image := filepath.Join(t.TempDir(), "image.hds")
	must(t, ploop.Create(image, ploop.CreateOptions{Size: 16 << 20, ClusterSize: 64 << 10}))
	ctl, err := ublk.Open("")
	must(t, err)
	defer ctl.Close()
	outcomes := map[string]int{}
	for k := range kills {
		args := []string{"create", "made", "--image", image}
		if k%2 == 1 {
			s.ok(args...)
			args = []string{"remove", "made"}
		}
		ended := make(chan error, 1)
		go func() { _, err := s.run(args...); ended <- err }()
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		switch {
		case !s.managed() || k/2%3 == 0:
			s.kill()
		case k/2%3 == 1:
			s.killDaemon()
		default:
			for _, pid := range s.servers() {
				unix.Kill(pid, unix.SIGKILL)
				s.ends(pid)
			}
		}
		<-ended
		s.begin()
		s.answers()
		state := s.settles("made")
		outcomes[args[0]+": "+state]++
		if state == api.StateLive {
			d, err := OpenBlockDevice("/dev/ublkb" + fmt.Sprint(s.id("made")))
			must(t, err)
			if _, err := d.WriteAt(letter('x'), 0); err != nil {
				t.Errorf("a device that is live after a kill in %s can't be written to: %v", args[0], err)
			}
			d.Close()
		}
		if state != "gone" {
			s.ok("remove", "made")
		}
		must(t, wait(30*time.Second, func() error { // it is deleted behind the scenes
			ids, err := ctl.List()
			if err == nil && len(ids) != 0 {
				err = fmt.Errorf("the driver still has %v", ids)
			}
			return err
		}))
		out, err := exec.Command(s.program, "image", "check", image).CombinedOutput()
		if err != nil {
			t.Errorf("after a kill in %s (%s): %v: %s", args[0], state, err, out)
		}
	}
	t.Logf("%d kills: %v", kills, outcomes)
}

// settles waits until a device's state is one that lasts.
func (s *server) settles(name string) (state string) {
	s.t.Helper()
	if err := wait(time.Minute, func() error {
		d, err := s.client.Device(s.t.Context(), name)
		switch {
		case api.CodeOf(err) == api.CodeNotFound:
			state = "gone"
		case err != nil:
			return err
		case d.State != api.StateLive && d.State != api.StateLost:
			return fmt.Errorf("%s is %s: %s", name, d.State, d.Problem)
		default:
			state = d.State
		}
		return nil
	}); err != nil {
		s.t.Fatalf("%v\n%s", err, s.logTail())
	}
	return state
}

func (s *server) id(name string) int {
	s.t.Helper()
	d, err := s.client.Device(s.t.Context(), name)
	must(s.t, err)
	return d.ID
}
