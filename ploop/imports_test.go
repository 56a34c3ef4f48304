package ploop

import (
	"os/exec"
	"strings"
	"testing"
)

// TestImports: who works on images links no engine, and who only names them links nothing of ours.
func TestImports(t *testing.T) {
	for _, c := range []struct{ pkg, never string }{
		{"holdfast/ploop", "holdfast/ploop/stack"},
		{"holdfast/ploop", "holdfast/ublk"},
		{"holdfast/ploop/stack", "holdfast/ublk"},
		{"holdfast/ploop/image", "holdfast/"},
	} {
		out, err := exec.Command("go", "list", "-deps", c.pkg).CombinedOutput()
		if err != nil {
			t.Fatalf("go list: %v: %s", err, out)
		}
		deps := strings.Fields(string(out))
		if len(deps) < 2 {
			t.Fatalf("%s has the dependencies %v", c.pkg, deps)
		}
		for _, d := range deps[:len(deps)-1] { // the last is the package itself
			if strings.HasPrefix(d, c.never) {
				t.Errorf("%s imports %s", c.pkg, d)
			}
		}
	}
}
