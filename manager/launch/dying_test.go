package launch

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/hack/faultfs"
	"holdfast/internal/dying"
)

// TestDying: a process that was killed hangs in storage, and its successor is started.
func TestDying(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for a FUSE mount")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip(err)
	}
	b := newBench(t)
	backing, mnt := t.TempDir(), t.TempDir()
	b.ok(os.WriteFile(backing+"/image", []byte("x"), 0o600))
	s, err := faultfs.Mount(backing, mnt, faultfs.Options{})
	b.ok(err)
	defer s.Close()

	tick := make(chan time.Time)
	f, err := newFork(testConfig(b.dir), tick)
	b.ok(err)
	b.Cleanup(func() { f.Close() })
	waited := waits(f)
	sweep := func() { tick <- time.Now() }
	rule := s.Add(faultfs.Rule{Op: faultfs.Read, Hang: true})
	hang := func(name string, how func(pid int)) int {
		b.ok(f.Start(ctx, name))
		pid := b.next(name)
		b.send(name, pid, "lock")
		hanging := s.Rule(rule).Hanging
		go b.send(name, pid, "read "+filepath.Join(mnt, "image"))
		b.until("a read hangs", func() bool { return s.Rule(rule).Hanging > hanging })
		how(pid)
		b.until("the process is dying", func() bool { _, yes := dying.Process(pid); return yes })
		return pid
	}
	exit := func(code string) func(int) {
		return func(pid int) { go func() { b.send("over", pid, "exit "+code) }() }
	}
	kill := func(pid int) { b.ok(unix.Kill(pid, unix.SIGKILL)) }

	old := hang("killed", kill)
	over := hang("over", exit("0"))
	stopped := hang("stopped", func(pid int) {
		b.ok(f.Stop(ctx, "stopped"))
		kill(pid) // the thread that got SIGTERM may be the one that hangs
	})
	b.ok(f.Start(ctx, "healthy"))
	b.next("healthy")

	sweep() // once is not enough
	sweep() // and this one begins when that is over
	if n := len(b.pids("killed")); n != 1 {
		t.Errorf("%d processes after one sight", n)
	}
	sweep()
	for range 3 {
		sweep() // there is one successor only
	}
	next := b.next("killed")
	if got := b.list(f); got != "healthy killed over stopped" {
		t.Errorf("there are %s", got)
	}
	if got := waited(); len(got) != 1 || got[0] != firstWait {
		t.Errorf("waits: %v", got)
	}
	// The one before has what its successor needs.
	locked := make(chan string)
	go func() { locked <- b.send("killed", next, "lock") }()
	// One that was stopped is started by a call, at once.
	b.ok(f.Start(ctx, "stopped"))
	b.next("stopped")

	for _, pid := range []int{old, over, stopped} {
		if _, yes := dying.Process(pid); !yes {
			t.Fatalf("process %d is no longer dying", pid)
		}
	}
	select {
	case <-locked:
		t.Error("the lock was free while the process was dying")
	default:
	}
	s.Remove(rule)
	if got := <-locked; got != "done" {
		t.Errorf("the lock: %s", got)
	}
	b.until("the dead are gone", func() bool { return b.list(f) == "healthy killed stopped" })
	for name, n := range map[string]int{"killed": 2, "over": 1, "stopped": 2, "healthy": 1} {
		if got := len(b.pids(name)); got != n {
			t.Errorf("%s: %d processes, and not %d", name, got, n)
		}
	}
}
