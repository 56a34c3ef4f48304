package kill

import (
	"errors"
	"testing"
	"time"
)

// TestControls: without reissue, and without recovery, a kill is an error for those
// whose requests the server had.
func TestControls(t *testing.T) {
	for i, protection := range []string{"no-reissue", "no-recovery"} {
		if onOtherKernel(i) {
			continue
		}
		t.Run(protection, func(t *testing.T) {
			s := makeServer(t, "--targets", "none")
			s.env = []string{"HOLDFAST_FAILSWITCH=" + protection}
			s.start()
			s.answers()
			g := oneDelta(t, t.TempDir(), 32<<20, 5)
			w := s.serve("control", g, 12)
			failed := countRequests(t, "block_rq_error", w.disk)
			failures := 0
			for range 5 {
				w.advances(100)
				s.kill()
				if protection == "no-reissue" {
					s.restart("control")
					w.advances(20)
				} else if err := wait(time.Minute, func() error { return noError(g.model) }); err != nil {
					t.Fatal(err)
				}
				if failures, _ = g.model.Errors(); failures > 0 {
					break
				}
			}
			if failures == 0 {
				t.Fatal("users saw no error of five kills: the kill loop would prove nothing")
			}
			_, words := g.model.Errors()
			t.Logf("%d operations failed, the first: %v; %d in the driver", failures, words[0], failed.hits())
			if n, words := g.model.Wrong(); n != 0 {
				t.Errorf("%d sectors read wrong: %v", n, words)
			}
			w.stop()
		})
	}
}

// noError is an error as long as the model has none.
func noError(m *Model) error {
	if n, _ := m.Errors(); n != 0 {
		return nil
	}
	return errors.New("nobody sees an error")
}

// TestModelOnDevice: the model finds what is wrong with a real device, too: an
// older copy of its image that is put in the image's place by force.
func TestModelOnDevice(t *testing.T) {
	needSoak(t)
	s := newServer(t, "--targets", "none")
	dir := t.TempDir()
	g := oneDelta(t, dir, 32<<20, 6)
	old := dir + "/old.hds"
	copyFile(t, g.refs[0].Path, old)
	w := s.serve("stale", g, 12)
	w.advances(300)
	s.ok("replace", "stale", old, "--force")
	w.advances(300)
	n, words := g.model.Wrong()
	if n == 0 {
		t.Fatal("an old image in the place of the new one was not noticed")
	}
	t.Logf("%d sectors read wrong, the first: %v", n, words[0])
	if n, words := g.model.Errors(); n != 0 {
		t.Errorf("%d operations failed: %v", n, words)
	}
	w.stop()
	s.ok("remove", "stale")
}
