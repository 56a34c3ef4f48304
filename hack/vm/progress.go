package main

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// progress is the way of the guest's standard output to ours. It knows by go test's verbose
// lines which tests run, since when, and which have failed, so that a verdict can say so.
type progress struct {
	to io.Writer

	mu      sync.Mutex
	part    []byte // a line without its end so far
	pkg     string // the package whose tests run
	running []runningTest
	failed  []string // what there is to say of the first that failed
	told    []string // the last lines that tests wrote since one began or ended
	last    time.Time
}

type runningTest struct {
	name  string
	since time.Time
}

// Bounds of what a verdict shows: its reader may have no more than the last lines of a log.
const (
	mostFailed = 4
	mostTold   = 5
)

var (
	beginForm = regexp.MustCompile(`^=== (RUN|CONT|PAUSE) +(\S+)`)
	endForm   = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (\S+)`)
	toldForm  = regexp.MustCompile(`^ +\w+_test\.go:\d+: `)
)

func (p *progress) Write(b []byte) (int, error) {
	n, err := p.to.Write(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.part = append(p.part, b[:n]...)
	for {
		line, rest, ok := bytes.Cut(p.part, []byte("\n"))
		if !ok {
			// What is no text, or not a test's, is not kept.
			p.part = bytes.Clone(rest[:0])
			if len(line) < 4096 {
				p.part = bytes.Clone(line)
			}
			return n, err
		}
		p.line(string(line))
		p.part = rest
	}
}

func (p *progress) line(l string) {
	if m := beginForm.FindStringSubmatch(l); m != nil {
		p.event()
		switch m[1] {
		case "RUN": // a test before it with the same parent has ended, which that tells later
			parent := m[2][:strings.LastIndex(m[2], "/")+1]
			p.end(func(name string) bool { return strings.HasPrefix(name, parent) })
		case "PAUSE":
			p.end(func(name string) bool { return name == m[2] })
			return
		}
		p.running = append(p.running, runningTest{m[2], time.Now()})
		return
	}
	if m := endForm.FindStringSubmatch(l); m != nil {
		told := p.told
		p.event()
		if m[1] == "FAIL" && len(p.failed) < mostFailed*(mostTold+1) {
			p.failed = append(p.failed, strings.TrimSpace(p.pkg+" "+m[2]+" failed"))
			p.failed = append(p.failed, told...)
		}
		p.end(func(name string) bool { return name == m[2] || strings.HasPrefix(name, m[2]+"/") })
		return
	}
	if toldForm.MatchString(l) {
		p.told = append(p.told, "    "+strings.TrimSpace(l))
		p.told = p.told[max(0, len(p.told)-mostTold):]
	}
}

// event is the begin or end of a test, or of a package's.
func (p *progress) event() { p.last, p.told = time.Now(), nil }

func (p *progress) end(is func(name string) bool) {
	p.running = slices.DeleteFunc(p.running, func(r runningTest) bool { return is(r.name) })
}

// begin is for the start of a package's tests.
func (p *progress) begin(pkg string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.event()
	p.pkg, p.running = pkg, nil
}

// idle is for how long no test has begun or ended; 0 before the first.
func (p *progress) idle() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last.IsZero() {
		return 0
	}
	return time.Since(p.last)
}

// underWay says which tests run, without those whose subtests do; "" if none does.
func (p *progress) underWay() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for _, r := range p.running {
		if !slices.ContainsFunc(p.running, func(s runningTest) bool { return strings.HasPrefix(s.name, r.name+"/") }) {
			all = append(all, fmt.Sprintf("%s for %v", r.name, time.Since(r.since).Round(time.Second)))
		}
	}
	if len(all) == 0 {
		return ""
	}
	return strings.TrimSpace(p.pkg + " " + strings.Join(all[:min(len(all), mostFailed)], ", "))
}

// failures are lines about the first tests that failed.
func (p *progress) failures() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// tail keeps the last of what is written on its way: a process's goroutines, at its end.
type tail struct {
	to io.Writer

	mu   sync.Mutex
	kept []byte
}

const mostTail = 4 << 20

func (t *tail) Write(b []byte) (int, error) {
	n, err := t.to.Write(b)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, b[:n]...)
	if over := len(t.kept) - mostTail; over > mostTail/4 {
		t.kept = bytes.Clone(t.kept[over:])
	}
	return n, err
}

// testGoroutine finds, in what a Go program prints when it is told to quit, the first
// goroutine of a test that doesn't just wait for a subtest, and gives the first lines of it.
func (t *tail) testGoroutine(limit int) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	for block := range strings.SplitSeq(string(t.kept), "\n\n") {
		at := strings.Index(block, "goroutine ")
		if at < 0 || !strings.Contains(block, "created by testing.(*T).Run") || strings.Contains(block, "\ntesting.(*T).Run(") {
			continue
		}
		lines := strings.Split(block[at:], "\n")
		return lines[:min(len(lines), limit)]
	}
	return nil
}
