package kill

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const tracing = "/sys/kernel/tracing"

// tracepoint counts what the kernel's block layer does with one device's
// requests, in a histogram of tracefs.
type tracepoint struct {
	t    *testing.T
	dir  string
	line *regexp.Regexp
}

// countRequests counts passes of an event of the block layer from now on:
// block_rq_requeue, by which the driver gives a request to the next server, or
// block_rq_error, which a device's user sees.
func countRequests(t *testing.T, event, disk string) *tracepoint {
	t.Helper()
	if _, err := os.Stat(tracing + "/events"); err != nil {
		must(t, syscall.Mount("none", tracing, "tracefs", 0, ""))
	}
	var st unix.Stat_t
	must(t, unix.Stat(disk, &st))
	// The kernel's own form of a device number.
	dev := unix.Major(st.Rdev)<<20 | unix.Minor(st.Rdev)
	p := &tracepoint{t, tracing + "/events/block/" + event, regexp.MustCompile(fmt.Sprintf(`\{ dev: +%d \} hitcount: +(\d+)`, dev))}
	trigger := func(text string) error { return os.WriteFile(p.dir+"/trigger", []byte(text), 0) }
	trigger("!hist:keys=dev") // of an earlier test
	must(t, trigger("hist:keys=dev"))
	t.Cleanup(func() { trigger("!hist:keys=dev") })
	return p
}

// hits is the number so far.
func (p *tracepoint) hits() int {
	p.t.Helper()
	text, err := os.ReadFile(p.dir + "/hist")
	must(p.t, err)
	m := p.line.FindStringSubmatch(string(text))
	if m == nil {
		if !strings.Contains(string(text), "Totals:") {
			p.t.Fatalf("%s/hist: %s", p.dir, text)
		}
		return 0
	}
	n, err := strconv.Atoi(m[1])
	must(p.t, err)
	return n
}
