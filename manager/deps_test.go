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
	rules := []struct {
		of    string
		never []string // a package, or with /... all below it too
		but   []string
	}{
		{"holdfast/manager", []string{"holdfast/server/...", "holdfast/ploop/..."}, []string{"holdfast/ploop/image"}},
		{"holdfast/manager/launch", []string{"holdfast/server/...", "holdfast/ploop/...", "holdfast/manager", "holdfast/ublk/...", "holdfast/standby"}, []string{"holdfast/ploop/image"}},
		{"holdfast/server", []string{"holdfast/manager/...", "holdfast/sysfs/...", "os/exec"}, nil},
		{"holdfast/cmd/holdfast-serve", []string{"holdfast/manager/...", "holdfast/sysfs/...", "os/exec",
			"github.com/hanwen/go-fuse/...", "github.com/prometheus/client_golang/...", "github.com/urfave/cli/..."}, nil},
		{"holdfast/api", []string{"holdfast/..."}, []string{"holdfast/api", "holdfast/ploop/image", "holdfast/internal/dying"}},
		{"holdfast/state", []string{"holdfast/..."}, []string{"holdfast/state", "holdfast/api", "holdfast/ploop/image", "holdfast/internal/dying"}},
	}
	args := []string{"list", "-f", `{{.ImportPath}} {{join .Deps " "}}`}
	for _, rule := range rules {
		args = append(args, rule.of)
	}
	out, err := exec.Command("go", args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		deps[f[0]] = f[1:]
	}
	for _, rule := range rules {
		if len(deps[rule.of]) == 0 {
			t.Errorf("%s: nothing is known of it", rule.of)
		}
		for _, dep := range deps[rule.of] {
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
