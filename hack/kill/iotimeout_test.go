package kill

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/ploop"
	"holdfast/ublk"
)

// TestDriverLearnsOfDeathsSoon: where the driver would learn only from a request's time-out that
// the server of a busy device died, that time is short, and the server was not who set it.
func TestDriverLearnsOfDeathsSoon(t *testing.T) {
	s := newServer(t, "--targets", "none")
	image := filepath.Join(t.TempDir(), "image.hds")
	must(t, ploop.Create(image, ploop.CreateOptions{Size: 16 << 20, ClusterSize: 64 << 10}))
	s.ok("create", "busy", "--image", image)
	d, err := s.client.Device(t.Context(), "busy")
	must(t, err)
	ctl, err := ublk.Open("")
	must(t, err)
	defer ctl.Close()
	// Nobody has used it yet.
	path, value, err := ctl.TimeoutAttr(t.Context(), d.ID)
	must(t, err)
	if path != "" {
		t.Errorf("%q is still to be written to %s", value, path)
	}
	have, err := ctl.Features(t.Context())
	must(t, err)
	is, err := os.ReadFile(fmt.Sprintf("/sys/block/ublkb%d/queue/io_timeout", d.ID))
	must(t, err)
	if short := strings.TrimSpace(string(is)) == "500"; short == have.Has(ublk.FeatureQuiesce) {
		t.Errorf("io_timeout is %s, with a driver that has %v", is, have)
	}
	s.ok("remove", "busy")
}
