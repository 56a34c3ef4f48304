package main

import (
	"strings"
	"testing"
)

// The table has a column and a ratio for what was measured, and does without the rest.
func TestTableOfSomeServers(t *testing.T) {
	l := load{false, 4 << 10, true, 32, 1}.String()
	run := func(server string, iops float64) *vmRun { return &vmRun{Server: server, Load: l, IOPS: iops} }
	table := func(runs ...*vmRun) string { return strings.Join(strings.Fields(vmTable(runs)), " ") }
	text := table(run(nullName, 3000), run(kublkNullName, 2000), run(fileName, 500), run(holdfastRawRef, 400))
	for _, want := range []string{"examples/null, as a ratio to kublk-null " + l + " 1.50", "examples/file, as a ratio to holdfast-raw " + l + " 1.25"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "examples/file, as a ratio to kublk-azc") || strings.Contains(text, "auto_zc") {
		t.Errorf("a ratio to what was not measured:\n%s", text)
	}
	text = table(run(holdfastName, 180), run(kublkZCName, 200))
	if !strings.Contains(text, "IOPS / kublk auto_zc 0.90") || strings.Contains(text, "examples") {
		t.Errorf("without the examples:\n%s", text)
	}
}
