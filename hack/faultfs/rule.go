package faultfs

import (
	"math/rand/v2"
	"path"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Op is a kind of operation.
type Op string

// The kinds.
const (
	Any       Op = ""
	Read      Op = "read"
	Write     Op = "write"
	Fsync     Op = "fsync" // and fdatasync
	Fallocate Op = "fallocate"
	Truncate  Op = "truncate"
	Open      Op = "open"
	Create    Op = "create" // of files, directories, links, and renames
	Unlink    Op = "unlink"
	Lookup    Op = "lookup"
	Getattr   Op = "getattr"
	Setattr   Op = "setattr" // but for the size
	Readdir   Op = "readdir"
	Lock      Op = "lock" // only with Options.Locks
	Flush     Op = "flush"
	Seek      Op = "seek" // SEEK_DATA and SEEK_HOLE
	Statfs    Op = "statfs"
)

// Rule says what happens to which operations.
type Rule struct {
	Op   Op     `json:",omitempty"`
	Path string `json:",omitempty"` // from the mount's root, "dir/file", or a pattern of path.Match; "": all
	// Off and Len are a range of the file, in bytes: reads, writes, truncates and
	// fallocates that touch it match. Len 0: all do.
	Off, Len int64 `json:",omitempty"`

	After  int     `json:",omitempty"` // so many that match pass first
	Times  int     `json:",omitempty"` // the rule applies so often; 0: always
	Chance float64 `json:",omitempty"` // and with this probability; 0: 1
	Seed   uint64  `json:",omitempty"` // of the dice

	Delay   time.Duration `json:",omitempty"`
	Hang    bool          `json:",omitempty"` // until the rule is removed
	Partial int64         `json:",omitempty"` // of a read or write, only so many bytes
	Apply   bool          `json:",omitempty"` // do it, and still answer Errno
	Errno   unix.Errno    `json:",omitempty"` // 0: what the operation itself answers
}

// RuleState is a rule and what came of it.
type RuleState struct {
	ID      int
	Rule    Rule
	Matched int // operations that matched
	Applied int // of these, the rule applied to so many
	Hanging int // now
}

// call is one operation.
type call struct {
	op       Op
	path     string
	off, len int64
}

// faults are the rules of one mount.
type faults struct {
	mu     sync.Mutex
	rules  []*liveRule
	next   int
	dead   unix.Errno
	counts map[Op]int
}

type liveRule struct {
	RuleState
	dice    *rand.Rand
	gone    chan struct{} // closed with the rule's end
	dropped unix.Errno    // what hanging operations answer then, 0: as the rule says
}

func newFaults() *faults { return &faults{counts: map[Op]int{}} }

func (f *faults) add(r Rule) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next++
	f.rules = append(f.rules, &liveRule{RuleState: RuleState{ID: f.next, Rule: r},
		dice: rand.New(rand.NewPCG(r.Seed, 0)), gone: make(chan struct{})})
	return f.next
}

// remove ends a rule, all for id 0. Operations that hang by it go on, or fail
// with errno. It says whether there was one.
func (f *faults) remove(id int, errno unix.Errno) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	var left []*liveRule
	for _, r := range f.rules {
		if id != 0 && r.ID != id {
			left = append(left, r)
			continue
		}
		r.dropped = errno
		close(r.gone)
	}
	found := len(left) < len(f.rules)
	f.rules = left
	return found
}

func (f *faults) setDead(errno unix.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = errno
}

func (f *faults) states() ([]RuleState, map[Op]int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]RuleState, len(f.rules))
	for i, r := range f.rules {
		all[i] = r.RuleState
	}
	counts := make(map[Op]int, len(f.counts))
	for op, n := range f.counts {
		counts[op] = n
	}
	return all, counts
}

// match finds the rule to apply, nil if there is none, and says whether the
// storage is dead.
func (f *faults) match(c call) (*liveRule, unix.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[c.op]++
	for _, r := range f.rules {
		if !r.Rule.matches(c) || r.Rule.Times > 0 && r.Applied >= r.Rule.Times {
			continue
		}
		if r.Matched++; r.Matched <= r.Rule.After {
			continue
		}
		if r.Rule.Chance > 0 && r.dice.Float64() >= r.Rule.Chance {
			continue
		}
		r.Applied++
		if r.Rule.Hang {
			r.Hanging++
		}
		return r, f.dead
	}
	return nil, f.dead
}

func (r *Rule) matches(c call) bool {
	if r.Op != Any && r.Op != c.op {
		return false
	}
	if r.Path != "" && r.Path != c.path {
		if ok, _ := path.Match(r.Path, c.path); !ok {
			return false
		}
	}
	switch c.op {
	case Read, Write, Fallocate, Truncate:
		return r.Len == 0 || c.off < r.Off+r.Len && r.Off < c.off+c.len
	}
	return r.Len == 0
}

// do carries an operation out, under the rules. perform does up to n bytes of
// it.
func (f *faults) do(c call, perform func(n int64) (int64, unix.Errno)) (int64, unix.Errno) {
	r, dead := f.match(c)
	if r == nil {
		if dead != 0 {
			return 0, dead
		}
		return perform(c.len)
	}
	rule := &r.Rule
	time.Sleep(rule.Delay)
	if rule.Hang {
		<-r.gone
		f.mu.Lock()
		r.Hanging--
		dropped := r.dropped
		f.mu.Unlock()
		if dropped != 0 {
			return 0, dropped
		}
	}
	switch {
	case rule.Partial > 0 && (c.op == Read || c.op == Write):
		n, errno := perform(min(c.len, rule.Partial))
		if rule.Errno != 0 {
			return 0, rule.Errno
		}
		return n, errno
	case rule.Apply && rule.Errno != 0:
		perform(c.len)
		return 0, rule.Errno
	case rule.Errno != 0:
		return 0, rule.Errno
	case dead != 0 && !rule.Hang: // a rule that only slows down or counts
		return 0, dead
	}
	return perform(c.len)
}
