package kill

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	tracing = "/sys/kernel/tracing"
	events  = tracing + "/events/block/"
)

// tracepoint counts what the kernel's block layer does with one device's
// requests, in a histogram of tracefs.
type tracepoint struct {
	t      *testing.T
	hist   string
	line   *regexp.Regexp
	before int // of earlier tests' devices with this number
}

// countRequests counts passes of an event of the block layer from now on:
// block_rq_requeue, by which the driver gives a request to the next server, or
// block_rq_error, which a device's user sees.
func countRequests(t *testing.T, event, disk string) *tracepoint {
	t.Helper()
	must(t, traced())
	var st unix.Stat_t
	must(t, unix.Stat(disk, &st))
	// The kernel's own form of a device number.
	dev := unix.Major(st.Rdev)<<20 | unix.Minor(st.Rdev)
	p := &tracepoint{t: t, hist: events + event + "/hist", line: regexp.MustCompile(fmt.Sprintf(`\{ dev: +%d \} hitcount: +(\d+)`, dev))}
	p.before = p.hits()
	return p
}

// traced turns the histograms on, once and for all: every time, the kernel changes its own
// code while it runs, and emulators have been seen to trip over that. So the
// scheduler's events are left out, too, which would come along for the names of tasks.
var traced = sync.OnceValue(func() error {
	if _, err := os.Stat(events); err != nil {
		if err := syscall.Mount("none", tracing, "tracefs", 0, ""); err != nil {
			return err
		}
	}
	if err := os.WriteFile(tracing+"/options/record-cmd", []byte("0"), 0); err != nil {
		return err
	}
	for _, event := range []string{"block_rq_requeue", "block_rq_error"} {
		if err := os.WriteFile(events+event+"/trigger", []byte("hist:keys=dev"), 0); err != nil {
			return err
		}
	}
	return nil
})

// hits is the number so far.
func (p *tracepoint) hits() int {
	p.t.Helper()
	text, err := os.ReadFile(p.hist)
	must(p.t, err)
	m := p.line.FindStringSubmatch(string(text))
	if m == nil {
		if !strings.Contains(string(text), "Totals:") {
			p.t.Fatalf("%s: %s", p.hist, text)
		}
		return 0
	}
	n, err := strconv.Atoi(m[1])
	must(p.t, err)
	return n - p.before
}
