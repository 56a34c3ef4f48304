package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	p := &progress{to: &out}
	if p.idle() != 0 || p.underWay() != "" {
		t.Errorf("before the first test: idle for %v, under way %q", p.idle(), p.underWay())
	}
	p.begin("holdfast/server/device")
	const text = "=== RUN   TestA\n    a_test.go:1: one\n--- PASS: TestA (0.10s)\n" +
		"=== RUN   TestB\n=== RUN   TestB/x\n    b_test.go:7: first\n    b_test.go:8: last\nnoise\n--- FAIL: TestB (1.00s)\n    --- FAIL: TestB/x (0.50s)\n" +
		"=== RUN   TestC\n=== RUN   TestC/copy\n=== RUN   TestC/copy/drop\n=== RUN   TestC/copy/land\n"
	for i := 0; i < len(text); i += 5 {
		fmt.Fprint(p, text[i:min(i+5, len(text))])
	}
	if out.String() != text {
		t.Errorf("%q came through", out.String())
	}
	p.running[2].since = time.Now().Add(-10 * time.Minute)
	if got := p.underWay(); got != "holdfast/server/device TestC/copy/land for 10m0s" {
		t.Errorf("under way: %q", got)
	}
	want := "holdfast/server/device TestB failed|    b_test.go:7: first|    b_test.go:8: last|holdfast/server/device TestB/x failed"
	if got := strings.Join(p.failures(), "|"); got != want {
		t.Errorf("failures: %q", got)
	}
	p.last = p.last.Add(-time.Hour)
	if p.idle() < time.Hour {
		t.Errorf("idle for %v", p.idle())
	}
	fmt.Fprint(p, "--- PASS: TestC (1.00s)\n")
	if p.idle() > time.Minute || p.underWay() != "" {
		t.Errorf("a test has ended, and it is idle for %v, under way is %q", p.idle(), p.underWay())
	}
	fmt.Fprint(p, "=== RUN   TestP\n=== PAUSE TestP\n=== RUN   TestQ\n=== PAUSE TestQ\n=== CONT  TestP\n=== CONT  TestQ\n")
	if got := p.underWay(); got != "holdfast/server/device TestP for 0s, TestQ for 0s" {
		t.Errorf("in parallel: %q", got)
	}
	// Neither many failures nor a line without an end are kept.
	for range 100 {
		fmt.Fprint(p, "--- FAIL: TestD (1.00s)\n", strings.Repeat("x", 5000))
	}
	if len(p.failures()) > mostFailed*(mostTold+1)+mostTold || len(p.part) > 2*5000 {
		t.Errorf("%d lines, %d bytes are kept", len(p.failures()), len(p.part))
	}
}

func TestTail(t *testing.T) {
	g := &tail{to: io.Discard}
	for range 100 {
		fmt.Fprint(g, strings.Repeat("line\n", 20000))
	}
	if len(g.kept) > 2*mostTail {
		t.Errorf("%d bytes are kept", len(g.kept))
	}
	if got := g.testGoroutine(9); got != nil {
		t.Errorf("found %q", got)
	}
	fmt.Fprint(g, "SIGQUIT: quit\n\ngoroutine 1 [chan receive]:\ntesting.(*T).Run(0x1)\n\nmain.main()\n\n"+
		"goroutine 7 [chan receive]:\ntesting.(*T).Run(0x2)\n\ta.go:1\ncreated by testing.(*T).Run in goroutine 1\n\ta.go:2\n\n"+
		"goroutine 8 [syscall, 10 minutes]:\nunix.Fdatasync(0x8)\n\tb.go:1\ncreated by testing.(*T).Run in goroutine 7\n\tb.go:2\n\n")
	if got := strings.Join(g.testGoroutine(3), "|"); got != "goroutine 8 [syscall, 10 minutes]:|unix.Fdatasync(0x8)|\tb.go:1" {
		t.Errorf("found %q", got)
	}
}
