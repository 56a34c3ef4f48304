package faultfs

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRules applies rules to calls, without a file system.
func TestRules(t *testing.T) {
	const eio = unix.EIO
	write := func(off int64) call { return call{Write, "d/f", off, 4096} }
	for _, c := range []struct {
		name  string
		rules []Rule
		dead  unix.Errno
		calls []call
		want  string // one word a call: what it answers, and in brackets what was done of it
	}{
		{"none", nil, 0, []call{write(0)}, "4096(4096)"},
		{"dead", nil, unix.ENOTCONN, []call{write(0)}, "ENOTCONN(0)"},
		{"kind", []Rule{{Op: Read, Errno: eio}}, 0, []call{write(0), {Read, "d/f", 0, 10}}, "4096(4096) EIO(0)"},
		{"any kind", []Rule{{Errno: eio}}, 0, []call{write(0), {op: Fsync}}, "EIO(0) EIO(0)"},
		{"path", []Rule{{Path: "d/g", Errno: eio}}, 0, []call{write(0), {Write, "d/g", 0, 1}}, "4096(4096) EIO(0)"},
		{"pattern", []Rule{{Path: "d/*", Errno: eio}}, 0, []call{write(0), {Write, "e/g", 0, 1}}, "EIO(0) 1(1)"},
		{"range", []Rule{{Off: 4096, Len: 4096, Errno: eio}}, 0,
			[]call{write(0), write(1), write(8191), write(8192), {op: Fsync, path: "d/f"}, {Truncate, "d/f", 5000, 1 << 62}}, "4096(4096) EIO(0) EIO(0) 4096(4096) 0(0) EIO(0)"},
		{"after and times", []Rule{{After: 1, Times: 2, Errno: eio}}, 0, []call{write(0), write(0), write(0), write(0)}, "4096(4096) EIO(0) EIO(0) 4096(4096)"},
		{"torn", []Rule{{Partial: 512, Errno: eio}}, 0, []call{write(0)}, "EIO(512)"},
		{"short", []Rule{{Partial: 512}}, 0, []call{write(0)}, "512(512)"},
		{"apply", []Rule{{Apply: true, Errno: eio}}, 0, []call{write(0)}, "EIO(4096)"},
		{"the first", []Rule{{Times: 1, Errno: unix.ENOSPC}, {Errno: eio}}, 0, []call{write(0), write(0)}, "ENOSPC(0) EIO(0)"},
		{"count only", []Rule{{}}, unix.EBUSY, []call{write(0)}, "EBUSY(0)"},
		{"rule before death", []Rule{{Errno: eio, Times: 1}}, unix.EBUSY, []call{write(0), write(0)}, "EIO(0) EBUSY(0)"},
	} {
		f := newFaults()
		f.setDead(c.dead)
		for _, r := range c.rules {
			f.add(r)
		}
		var got []string
		for _, call := range c.calls {
			got = append(got, perform(f, call))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, s, c.want)
		}
	}
}

func perform(f *faults, c call) string {
	done := int64(0)
	n, errno := f.do(c, func(n int64) (int64, unix.Errno) { done = n; return n, 0 })
	if errno != 0 {
		return fmt.Sprintf("%s(%d)", unix.ErrnoName(errno), done)
	}
	return fmt.Sprintf("%d(%d)", n, done)
}

// TestChance throws the same dice for the same seed.
func TestChance(t *testing.T) {
	run := func(seed uint64) (all string, applied int) {
		f := newFaults()
		f.add(Rule{Op: Write, Chance: 0.3, Seed: seed, Errno: unix.EIO})
		for range 1000 {
			all += perform(f, call{Write, "f", 0, 1})
		}
		states, counts := f.states()
		if counts[Write] != 1000 || states[0].Matched != 1000 {
			t.Errorf("counted %v, %+v", counts, states)
		}
		return all, states[0].Applied
	}
	one, applied := run(1)
	if again, _ := run(1); one != again {
		t.Error("the same seed gives another run")
	}
	if other, _ := run(2); one == other {
		t.Error("another seed gives the same run")
	}
	if applied < 200 || applied > 400 {
		t.Errorf("applied %d times in 1000, with a chance of 0.3", applied)
	}
}

// TestHangRules holds calls, lets them go, and drops them.
func TestHangRules(t *testing.T) {
	f := newFaults()
	one := f.add(Rule{Op: Write, Times: 1, Hang: true})
	two := f.add(Rule{Op: Write, Times: 1, Hang: true, Errno: unix.EIO, Apply: true})
	results := make(chan string, 2)
	hanging := func(n int) {
		t.Helper()
		for {
			states, _ := f.states()
			sum := 0
			for _, s := range states {
				sum += s.Hanging
			}
			if sum == n {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	go func() { results <- perform(f, call{Write, "f", 0, 1}) }()
	hanging(1)
	go func() { results <- perform(f, call{Write, "f", 0, 2}) }()
	hanging(2)
	if got := perform(f, call{Write, "f", 0, 3}); got != "3(3)" {
		t.Errorf("beside two that hang: %s", got)
	}
	f.setDead(unix.ENOTCONN) // doesn't touch what was on its way
	if !f.remove(one, 0) || f.remove(one, 0) {
		t.Error("the rule isn't there once")
	}
	if got := <-results; got != "1(1)" {
		t.Errorf("let go: %s", got)
	}
	f.remove(two, 0)
	if got := <-results; got != "EIO(2)" {
		t.Errorf("let go, with an error: %s", got)
	}
	f.add(Rule{Hang: true})
	go func() { results <- perform(f, call{Write, "f", 0, 4}) }()
	hanging(1)
	f.remove(0, unix.EBUSY)
	if got := <-results; got != "EBUSY(0)" {
		t.Errorf("dropped: %s", got)
	}
}
