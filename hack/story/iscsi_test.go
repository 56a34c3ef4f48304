package story

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/hack/tool"
)

// iscsiSuites are those of libiscsi's conformance tests that are about data; it has none for
// SYNCHRONIZE CACHE. Those in front are run in any case, all with HOLDFAST_ROUNDS.
var iscsiSuites = []string{"Read10", "Write10", "Unmap", "WriteSame10", "WriteSame16", "Read6", "Read12", "Read16", "Write12", "Write16",
	"WriteVerify10", "WriteVerify16", "Verify10", "Verify16", "OrWrite", "CompareAndWrite", "ReadCapacity16", "Mandatory", "Inquiry"}

const quickSuites = 3

// TestConformance: a target over one of our devices passes the same of libiscsi's tests as
// one over the kernel's loop device. Some tests are skipped on disks with physical blocks
// of 512 bytes, as the loop device's are; in these the kernel's RAM disk is the measure,
// which has blocks of a page like ours.
func TestConformance(t *testing.T) {
	needVM(t)
	if testing.Short() {
		t.Skip("takes long: make soak")
	}
	must(t, tool.Run("modprobe", "loop"))
	d := startDaemon(t)
	const size = 64 << 20
	image := d.dir + "/iscsi.hds"
	d.checkAfter(image)
	d.ok("image", "create", "--size", fmt.Sprint(size), image)
	ours := exportLIO(t, "ours", d.serve("iscsi", "--image", image))
	file := d.dir + "/iscsi.raw"
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, size))
	theirs := exportLIO(t, "theirs", loop(t, file))
	must(t, tool.Run("modprobe", "brd", "rd_nr=1", fmt.Sprintf("rd_size=%d", size>>10)))
	t.Cleanup(func() { tool.Run("rmmod", "brd") })
	ram := exportLIO(t, "ram", "/dev/ram0")
	for _, target := range []*lioTarget{ours, theirs, ram} {
		set(t, target.Backstore+"/attrib/emulate_tpu", "1")
		set(t, target.Backstore+"/attrib/emulate_tpws", "1")
	}
	suites := iscsiSuites
	if os.Getenv("HOLDFAST_ROUNDS") == "" {
		suites = suites[:quickSuites]
	}
	passed := 0
	for _, suite := range suites {
		a, b := iscsiTest(t, ours, suite), iscsiTest(t, theirs, suite)
		if len(a) == 0 {
			t.Errorf("%s: no test was run", suite)
		}
		var c map[string]string
		for _, name := range slices.Sorted(maps.Keys(b)) {
			switch {
			case a[name] == b[name]:
			case b[name] != "skipped":
				t.Errorf("%s.%s: %q on our device, %q on a loop device", suite, name, a[name], b[name])
			default:
				if c == nil {
					c = iscsiTest(t, ram, suite)
				}
				if a[name] != c[name] {
					t.Errorf("%s.%s: %q on our device, %q on a RAM disk", suite, name, a[name], c[name])
				}
			}
			if b[name] == "passed" {
				passed++
			}
		}
		if len(a) != len(b) {
			t.Errorf("%s: %d tests on our device, %d on a loop device", suite, len(a), len(b))
		}
	}
	if passed < len(suites) {
		t.Errorf("only %d tests passed on the loop device: this compares nothing", passed)
	}
	t.Logf("%d suites, %d tests passed on both", len(suites), passed)
}

// What iscsi-test-cu prints of a test: its name, and at the end of what it says the outcome.
var iscsiName = regexp.MustCompile(`^\s*Test: (\S+) \.\.\.`)

// iscsiTest runs a suite and gives each test's outcome.
func iscsiTest(t *testing.T, target *lioTarget, suite string) map[string]string {
	t.Helper()
	cmd := exec.Command("timeout", "300", "iscsi-test-cu", "--dataloss", "--test=ALL."+suite, fmt.Sprintf("iscsi://%s/%s/0", portal, target.IQN))
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("%s on %s: %v", suite, target.IQN, err)
	}
	result, name := map[string]string{}, ""
	for line := range strings.Lines(string(out)) {
		if m := iscsiName.FindStringSubmatch(line); m != nil {
			name = m[1]
			result[name] = "unknown"
		}
		if name == "" {
			continue
		}
		switch {
		case strings.Contains(line, "[SKIPPED]"):
			result[name] = "skipped"
		case strings.Contains(line, "FAILED"):
			result[name] = "failed"
		case strings.Contains(line, "passed") && result[name] == "unknown":
			result[name] = "passed"
		}
	}
	t.Logf("%s on %s: %d tests in %v", suite, target.IQN, len(result), since(began))
	if len(result) == 0 {
		t.Logf("%s", out)
	}
	return result
}
