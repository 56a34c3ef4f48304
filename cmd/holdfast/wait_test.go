package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestWaitInVain: the code of a wait whose time is up is its own, and the message says what
// the device is instead.
func TestWaitInVain(t *testing.T) {
	newStandbyDaemon(t)
	for _, line := range []string{"wait vol live --timeout 10ms", "wait --timeout 0s vol live,removed"} {
		var out, errs bytes.Buffer
		code := run(words(line), &out, &errs)
		if code != exitTimeUp || out.Len() != 0 || !strings.HasSuffix(errs.String(), `device "vol" is standby: in standby`+"\n") || strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%s: exit %d, %q, %q", line, code, &out, &errs)
		}
	}
}
