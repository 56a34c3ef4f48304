package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

func TestConsoleFaults(t *testing.T) {
	for line, want := range map[string]bool{
		"[    5.3] Kernel panic - not syncing: sysrq triggered crash":                                   true,
		"[    5.3] BUG: kernel NULL pointer dereference, address: 0000000000000000":                     true,
		"[    5.3] Oops: Oops: 0002 [#1] SMP NOPTI":                                                     true,
		"[    2.4] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI":                                             true,
		"[  242.1] INFO: task fio:123 blocked for more than 120 seconds.":                               true,
		"[   65.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:":                               true,
		"[   65.1] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [fio:123]":                         true,
		"[   65.1] list_del corruption. prev->next should be ffff, but was 0000":                        true,
		"[   35.4] UBSAN: array-index-out-of-bounds in io_uring/rsrc.c:1070:12":                         false,
		"[    0.1] DEBUG: nothing":                                                                      false,
		"[    5.3] WARNING: CPU: 0 PID: 1 at drivers/block/ublk_drv.c:100 ublk_x+0x1/0x2":               false,
		"[    0.0] Kernel command line: console=ttyS0 panic=-1 rcupdate.rcu_cpu_stall_timeout=60":       false,
		"[    0.3] RCU CPU stall warnings timeout set to 60 (rcu_cpu_stall_timeout).":                   false,
		"[    3.3] Buffer I/O error on dev ublkb0, logical block 0, lost async page write":              false,
		"[    0.1] Spectre V2 : mitigation: Enabling conditional Indirect Branch Prediction Barrier ok": false,
	} {
		c := &console{copy: io.Discard}
		fmt.Fprintf(c, "%s\r\n", line)
		fault, panicked := c.fault()
		if (fault != "") != want || panicked != strings.Contains(line, "Kernel panic") {
			t.Errorf("%s: fault %q, panicked %v", line, fault, panicked)
		}
		if c.tripped() != strings.Contains(line, "int3") {
			t.Errorf("%s: tripped %v", line, c.tripped())
		}
	}
}

// TestConsoleReport feeds a log in odd pieces and looks at what is shown of it.
func TestConsoleReport(t *testing.T) {
	var file bytes.Buffer
	c := &console{copy: &file}
	feed := func(s string) {
		for len(s) > 0 {
			n := min(7, len(s))
			fmt.Fprint(c, s[:n])
			s = s[n:]
		}
	}
	feed("boot one\r\nboot error two\r\n")
	if got := c.report(1); len(got) != 1 || got[0] != "boot error two" {
		t.Errorf("before user space: %q", got)
	}
	c.markReady()
	feed("dull\r\nI/O error, dev ublkb0\r\nWARNING: at x\r\ndull again\r\n")
	if got := strings.Join(c.report(10), "|"); got != "I/O error, dev ublkb0|WARNING: at x" {
		t.Errorf("important lines: %q", got)
	}
	if c.warning() != "WARNING: at x" {
		t.Errorf("warning: %q", c.warning())
	}
	for i := range keepLines + 10 {
		feed(fmt.Sprintf("filler %d\n", i))
	}
	feed("before\nBUG: bad\nafter\n")
	got := c.report(100)
	if len(got) != 5 || got[2] != "before" || got[3] != "BUG: bad" || got[4] != "after" {
		t.Errorf("a fault in its surroundings: %q", got)
	}
	if !strings.HasPrefix(file.String(), "boot one\r\n") || !strings.HasSuffix(file.String(), "after\n") {
		t.Error("the log file is not a faithful copy")
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-kernel", "6.12", "-timeout", "5s", "-env", "A=1", "-env", "B", "-disk", "1G", "--", "sh", "-c", "exit 3"})
	if err != nil {
		t.Fatal(err)
	}
	if o.kernel != "6.12" || o.timeout != 5*time.Second || len(o.env) != 2 || strings.Join(o.args, "|") != "sh|-c|exit 3" {
		t.Errorf("got %+v", o)
	}
	for _, bad := range [][]string{{"-cpus", "0", "true"}, {"-timeout", "0s", "true"}, {"-timeout", "-1s", "true"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v: accepted", bad)
		}
	}
}

func TestMakeDisks(t *testing.T) {
	dir := t.TempDir()
	d, err := makeDisks(dir, []string{"3M", "1G,none"})
	if err != nil || len(d) != 2 || d[0].cache != "unsafe" || d[1].cache != "none" {
		t.Fatalf("got %v, %v", d, err)
	}
	for _, bad := range []string{"", "x", "1P", "1G,", "99999999999999T", "-1G"} {
		if _, err := makeDisks(dir, []string{bad}); err == nil {
			t.Errorf("-disk %q: accepted", bad)
		}
	}
}
