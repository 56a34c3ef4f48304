package manager

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestDependencies: who serves a host links nothing that opens an image, and who serves a device
// nothing that starts a program or knows of other devices.
func TestDependencies(t *testing.T) {
	for _, rule := range []struct {
		of    string
		never []string // a package, or with /... all below it too
		but   []string
	}{
		{"holdfast/manager", []string{"holdfast/device/...", "holdfast/server/...", "holdfast/control/...", "holdfast/ploop/..."}, []string{"holdfast/ploop/image"}},
		{"holdfast/manager/launch", []string{"holdfast/device/...", "holdfast/server/...", "holdfast/ploop/...", "holdfast/manager", "holdfast/ublk/...", "holdfast/standby"}, []string{"holdfast/ploop/image"}},
		{"holdfast/server", []string{"holdfast/manager/...", "holdfast/control/...", "holdfast/sysfs/...", "holdfast/target/...", "os/exec"}, nil},
		{"holdfast/cmd/holdfast-serve", []string{"holdfast/manager/...", "holdfast/control/...", "holdfast/sysfs/...", "holdfast/target/...", "os/exec",
			"github.com/hanwen/go-fuse/...", "github.com/prometheus/client_golang/...", "github.com/urfave/cli/..."}, nil},
		{"holdfast/api", []string{"holdfast/..."}, []string{"holdfast/api", "holdfast/ploop/image", "holdfast/internal/dying"}},
		{"holdfast/state", []string{"holdfast/..."}, []string{"holdfast/state", "holdfast/api", "holdfast/ploop/image", "holdfast/internal/dying"}},
	} {
		if err := exec.Command("go", "list", "-find", rule.of).Run(); err != nil {
			t.Logf("%s: not there yet", rule.of)
			continue
		}
		out, err := exec.Command("go", "list", "-deps", rule.of).Output()
		if err != nil {
			t.Fatalf("%s: %v", rule.of, err)
		}
		for _, dep := range strings.Fields(string(out)) {
			if within(dep, rule.never) && !slices.Contains(rule.but, dep) {
				t.Errorf("%s must not know %s", rule.of, dep)
			}
		}
	}
}

func within(dep string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		root, all := strings.CutSuffix(p, "/...")
		return dep == root || all && strings.HasPrefix(dep, root+"/")
	})
}
