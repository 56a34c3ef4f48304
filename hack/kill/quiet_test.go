package kill

import (
	"testing"
)

// TestWithoutKills: with nobody killed the model finds nothing, and no request is
// reissued. What the other tests find, they find for their kills.
func TestWithoutKills(t *testing.T) {
	needSoak(t)
	s := newServer(t, "--targets", "none")
	for name, make := range map[string]func(*testing.T, string, int64, uint64) *images{"three": threeDeltas, "one": oneDelta} {
		g := make(t, t.TempDir(), 32<<20, 7)
		l := s.serve(name, g, 12)
		requeued, errors := countRequests(t, "block_rq_requeue", l.disk), countRequests(t, "block_rq_error", l.disk)
		l.advances(2000)
		if n := requeued.hits(); n != 0 {
			t.Errorf("%s: %d requests were reissued", name, n)
		}
		if n := errors.hits(); n != 0 {
			t.Errorf("%s: %d requests failed", name, n)
		}
		t.Logf("%s: %v", name, l)
		s.remove(name, l)
	}
}
