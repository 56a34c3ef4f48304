package main

import (
	"io"
	"regexp"
	"strings"
	"sync"
)

// console collects the guest's kernel log from the serial console, copies it
// to a file and looks for signs that the kernel is not well.
type console struct {
	mu     sync.Mutex
	copy   io.Writer
	part   []byte   // a line without its end so far
	lines  []string // the last keepLines
	first  int      // number of lines[0], counted from the start
	ready  int      // number of the first line after the guest was ready
	hung   int      // number of the line after which blocked tasks are listed
	faults []int    // numbers of lines that match faultForm
	panic  bool
	int3   bool   // see tripped
	warned string // the first warning since ready
}

const keepLines = 4000

// faultForm matches what the kernel says when it has met a bug of its own or
// of a driver: an oops or BUG, a list or memory corruption, a task or processor
// that hangs, a lock used wrongly. Plain warnings are not among them.
var faultForm = regexp.MustCompile(`Kernel panic|\bBUG: |kernel BUG at|Oops: |Oops\b.*\[#|general protection fault|` +
	`INFO: task .* blocked for more than|detected stalls? on|self-detected stall|soft lockup|hard LOCKUP|` +
	`refcount_t: |list_(add|del) corruption|INFO: possible (circular|recursive) locking|Unable to handle kernel|` +
	`KASAN: |unregister_netdevice: waiting|double fault:|stack-protector: `)

// warnForm matches what is told but isn't a failure. UBSAN is here because stock
// 7.2 reports an index out of range in io_buffer_register_bvec the first time a
// ublk buffer is registered with a ring, whoever the server is.
var warnForm = regexp.MustCompile(`WARNING: |UBSAN: `)

// noteForm matches lines worth showing when a command has failed.
var noteForm = regexp.MustCompile(`(?i)error|warn|fail|corrupt|timed? ?out|killed process|out of memory|segfault|cut here|ublk|XFS|EXT4-fs|I/O`)

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.copy.Write(p); err != nil {
		return 0, err
	}
	c.part = append(c.part, p...)
	for {
		line, rest, ok := strings.Cut(string(c.part), "\n")
		if !ok {
			return len(p), nil
		}
		c.part = []byte(rest)
		c.line(strings.TrimRight(line, "\r"))
	}
}

func (c *console) line(s string) {
	number := c.first + len(c.lines)
	c.lines = append(c.lines, s)
	if len(c.lines) > keepLines {
		c.lines = c.lines[1:]
		c.first++
	}
	if faultForm.MatchString(s) {
		c.faults = append(c.faults, number)
		c.panic = c.panic || strings.Contains(s, "Kernel panic")
		c.int3 = c.int3 || strings.Contains(s, "Oops: int3")
	}
	if strings.Contains(s, "Show Blocked State") {
		c.hung = number
	}
	if c.warned == "" && c.ready > 0 && warnForm.MatchString(s) {
		c.warned = strings.TrimSpace(s)
	}
}

// markReady remembers that what comes now happened while commands ran.
func (c *console) markReady() {
	c.mu.Lock()
	c.ready = c.first + len(c.lines)
	c.mu.Unlock()
}

// report returns lines of the kernel log to show: from the first fault on if
// there is one, or the list of blocked tasks that a time-out asks for, otherwise
// the last ones since ready that look important; before that, simply the last.
func (c *console) report(limit int) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.faults) > 0 {
		// An oops has some lines of context before its first telling one.
		from := max(0, c.faults[0]-3-c.first)
		return c.lines[from:min(len(c.lines), from+limit)]
	}
	if c.hung > 0 {
		return c.lines[max(0, c.hung-c.first):min(len(c.lines), c.hung-c.first+limit)]
	}
	if c.ready == 0 {
		return c.lines[max(0, len(c.lines)-limit):]
	}
	var out []string
	for _, l := range c.lines[max(0, c.ready-c.first):] {
		if noteForm.MatchString(l) {
			out = append(out, l)
		}
	}
	return out[max(0, len(out)-limit):]
}

// warning returns the first warning since the guest was ready.
func (c *console) warning() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.warned
}

// tripped says that a processor has run into the breakpoint that the kernel puts where it
// patches itself, and was not known to: an emulator's fault (seen with QEMU 7.2's TCG), as it
// goes on with what it had translated before.
func (c *console) tripped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.int3
}

// fault returns the first line that shows a fault, and whether the kernel panicked at any time.
func (c *console) fault() (line string, panicked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.faults {
		if n >= c.first {
			return c.lines[n-c.first], c.panic
		}
	}
	if len(c.faults) > 0 {
		return "a fault early in the log", c.panic
	}
	return "", c.panic
}
