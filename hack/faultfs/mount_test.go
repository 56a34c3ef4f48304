package faultfs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Child()
	if os.Getenv("HOLDFAST_VM") != "" {
		exec.Command("modprobe", "fuse").Run()
	}
	os.Exit(m.Run())
}

// twoWays mounts one directory twice. It skips where that can't be, but not in
// the VM.
func twoWays(t *testing.T, o Options) (a, b *Storage) {
	t.Helper()
	backing := t.TempDir()
	mount := func() *Storage {
		s, err := Mount(backing, t.TempDir(), o)
		if err != nil {
			if os.Getenv("HOLDFAST_VM") == "" {
				t.Skip(err)
			}
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	return mount(), mount()
}

func open(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags, 0o600)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func pwrite(fd int, c byte, n int, off int64) error {
	k, err := unix.Pwrite(fd, bytes.Repeat([]byte{c}, n), off)
	if err == nil && k != n {
		err = fmt.Errorf("short: %d of %d", k, n)
	}
	return err
}

func pread(fd int, n int, off int64) string {
	buf := make([]byte, n)
	k, err := unix.Pread(fd, buf, off)
	if err != nil {
		return err.Error()
	}
	return string(buf[:k])
}

// TestThrough does everything once, and sees it in the files behind and by the
// other way.
func TestThrough(t *testing.T) {
	a, b := twoWays(t, Options{AsyncIO: true})
	run := func(script string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", script)
		cmd.Env = append(os.Environ(), "A="+a.Dir, "B="+b.Dir, "BACK="+a.Backing)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
	run(`mkdir $A/d; dd if=/dev/urandom of=$A/d/f bs=1M count=2 oflag=direct conv=fsync 2>/dev/null; cmp $A/d/f $B/d/f; cmp $A/d/f $BACK/d/f
		dd if=$B/d/f of=/dev/null bs=512 count=3 iflag=direct 2>/dev/null; stat -c %s $B/d/f | grep -qx 2097152`)
	run(`truncate -s 1M $B/d/f; stat -c %s $A/d/f | grep -qx 1048576; mv $A/d/f $A/g; [ ! -e $B/d/f ]; cmp $B/g $BACK/g; rmdir $B/d; [ ! -e $A/d ]`)
	run(`fallocate -p -o 4096 -l 8192 $A/g; cmp -n 8192 -i 4096:0 $A/g /dev/zero
		if fallocate -z -o 8192 -l 4096 $BACK/g; then fallocate -z -o 65536 -l 4096 $B/g; cmp -n 4096 -i 65536:0 $A/g /dev/zero; fi # tmpfs can't
		cmp $A/g $BACK/g`)
	run(`ln $A/g $A/h; ln -s g $B/s; cmp $A/s $B/h; rm $B/g $A/s; [ ! -e $A/g ]; df $A >/dev/null; ls $B | grep -qx h`)
	fd := open(t, a.Dir+"/big", unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT)
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	before := a.Counts()[Write]
	if n, err := unix.Pwrite(fd, buf, 0); n != 1<<20 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n := a.Counts()[Write] - before; n != 1 {
		t.Errorf("a write of a megabyte came in %d", n)
	}
	if b.Counts()[Read] == 0 {
		t.Error("no read was counted")
	}
}

// TestLocks has two descriptors of one mount, and one of the other, want a lock.
func TestLocks(t *testing.T) {
	for _, passed := range []bool{false, true} {
		t.Run(fmt.Sprintf("passed %v", passed), func(t *testing.T) {
			a, b := twoWays(t, Options{Locks: passed})
			one := open(t, a.Dir+"/f", unix.O_RDWR|unix.O_CREAT)
			two := open(t, a.Dir+"/f", unix.O_RDWR)
			other := open(t, b.Dir+"/f", unix.O_RDWR)
			lock := func(fd int) error {
				return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 1})
			}
			if err := lock(one); err != nil {
				t.Fatal(err)
			}
			if err := lock(two); err != unix.EAGAIN {
				t.Errorf("twice in one mount: %v", err)
			}
			if err := lock(other); passed && err != unix.EAGAIN || !passed && err != nil {
				t.Errorf("by the other mount: %v", err)
			}
			if passed {
				a.Add(Rule{Op: Lock, Errno: unix.ENOLCK, Times: 1})
				if err := lock(one); err != unix.ENOLCK {
					t.Errorf("by a rule: %v", err)
				}
			}
			a.Kill()
			for i := 0; passed && lock(other) != nil; i++ { // the kernel closes the child's files in its time
				if time.Sleep(10 * time.Millisecond); i > 1000 {
					t.Fatal("the lock outlives the mount")
				}
			}
		})
	}
}

// TestFaults sees what each kind of rule does.
func TestFaults(t *testing.T) {
	a, b := twoWays(t, Options{})
	fd := open(t, a.Dir+"/f", unix.O_RDWR|unix.O_CREAT)
	other := open(t, b.Dir+"/f", unix.O_RDWR)
	if err := pwrite(fd, 'a', 16, 0); err != nil {
		t.Fatal(err)
	}
	rule := func(r Rule, do func() error, want error) {
		t.Helper()
		id := a.Add(r)
		if err := do(); err != want {
			t.Errorf("%+v: %v, want %v", r, err, want)
		}
		if n := a.Rule(id).Applied; n < 1 { // the kernel looks a name up twice
			t.Errorf("%+v was applied %d times", r, n)
		}
		a.Remove(id)
	}
	var st unix.Stat_t
	rule(Rule{Op: Write, Errno: unix.EIO}, func() error { return pwrite(fd, 'b', 16, 0) }, unix.EIO)
	rule(Rule{Op: Write, Errno: unix.EBUSY, Partial: 4}, func() error { return pwrite(fd, 'c', 16, 0) }, unix.EBUSY)
	rule(Rule{Op: Write, Errno: unix.ENOTCONN, Apply: true}, func() error { return pwrite(fd, 'd', 4, 8) }, unix.ENOTCONN)
	if got := pread(other, 100, 0); got != "ccccaaaaddddaaaa" {
		t.Errorf("the file is %q", got)
	}
	rule(Rule{Op: Write, Partial: 1}, func() error {
		if n, err := unix.Pwrite(fd, []byte("eeee"), 0); n != 1 || err != nil {
			return fmt.Errorf("%d, %v", n, err)
		}
		return nil
	}, nil)
	rule(Rule{Op: Read, Partial: 2}, func() error {
		if got := pread(fd, 4, 0); got != "ec" {
			return fmt.Errorf("%q", got)
		}
		return nil
	}, nil)
	rule(Rule{Op: Read, Errno: unix.EIO, Off: 8, Len: 1}, func() error {
		if got := pread(fd, 8, 0); got != "ecccaaaa" {
			return fmt.Errorf("%q", got)
		}
		_, err := unix.Pread(fd, make([]byte, 1), 8)
		return err
	}, unix.EIO)
	rule(Rule{Op: Fsync, Errno: unix.EIO}, func() error { return unix.Fsync(fd) }, unix.EIO)
	rule(Rule{Op: Fsync, Errno: unix.EIO}, func() error { return unix.Fdatasync(fd) }, unix.EIO)
	rule(Rule{Op: Fallocate, Errno: unix.ENOSPC}, func() error { return unix.Fallocate(fd, 0, 0, 4096) }, unix.ENOSPC)
	rule(Rule{Op: Truncate, Errno: unix.EIO}, func() error { return unix.Ftruncate(fd, 0) }, unix.EIO)
	rule(Rule{Op: Getattr, Errno: unix.EIO}, func() error { return unix.Fstat(fd, &st) }, unix.EIO)
	rule(Rule{Op: Open, Path: "f", Errno: unix.EBUSY}, func() error { _, err := unix.Open(a.Dir+"/f", unix.O_RDWR, 0); return err }, unix.EBUSY)
	rule(Rule{Op: Lookup, Path: "f", Errno: unix.EIO}, func() error { return unix.Stat(a.Dir+"/f", &st) }, unix.EIO)
	rule(Rule{Op: Create, Path: "g", Errno: unix.EIO}, func() error {
		_, err := unix.Open(a.Dir+"/g", unix.O_RDWR|unix.O_CREAT, 0o600)
		return err
	}, unix.EIO)
	rule(Rule{Op: Unlink, Errno: unix.EPERM}, func() error { return unix.Unlink(a.Dir + "/f") }, unix.EPERM)
	if got := pread(other, 100, 0); got != "ecccaaaaddddaaaa" {
		t.Errorf("the file is %q", got)
	}
}

// TestDead takes one way away and gives it back, and kills it at last.
func TestDead(t *testing.T) {
	a, b := twoWays(t, Options{})
	fd := open(t, a.Dir+"/f", unix.O_RDWR|unix.O_CREAT)
	other := open(t, b.Dir+"/f", unix.O_RDWR)
	var st unix.Stat_t
	dead := func(want error) {
		t.Helper()
		_, openErr := os.Open(a.Dir + "/f")
		for what, err := range map[string]error{
			"write": pwrite(fd, 'x', 1, 0), "fsync": unix.Fsync(fd), "fstat": unix.Fstat(fd, &st),
			"stat": unix.Stat(a.Dir+"/f", &st), "root": unix.Stat(a.Dir, &st), "truncate": unix.Ftruncate(fd, 1),
			"fallocate": unix.Fallocate(fd, 0, 0, 1), "read": func() error { _, err := unix.Pread(fd, make([]byte, 1), 0); return err }(),
		} {
			if err != want {
				t.Errorf("%s: %v, want %v", what, err, want)
			}
		}
		if (openErr != nil) != (want != nil) {
			t.Errorf("open: %v", openErr)
		}
		if err := pwrite(other, 'o', 1, 0); err != nil {
			t.Errorf("the other way: %v", err)
		}
	}
	dead(nil)
	for _, errno := range []unix.Errno{unix.ENOTCONN, unix.EIO, unix.EBUSY} {
		a.Dead(errno)
		dead(errno)
	}
	a.Dead(0)
	dead(nil)
	a.Kill()
	dead(unix.ENOTCONN)
	again, err := Mount(a.Backing, a.Dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := pread(open(t, a.Dir+"/f", unix.O_RDONLY), 1, 0); got != "o" {
		t.Errorf("mounted again: %q", got)
	}
	if err := unix.Fsync(fd); err != unix.ENOTCONN {
		t.Errorf("what was open before: %v", err)
	}
}

// TestHoldBack has one write land after later ones.
func TestHoldBack(t *testing.T) {
	a, b := twoWays(t, Options{})
	fd := open(t, a.Dir+"/f", unix.O_RDWR|unix.O_CREAT)
	other := open(t, b.Dir+"/f", unix.O_RDWR)
	if err := pwrite(fd, '.', 12, 0); err != nil {
		t.Fatal(err)
	}
	for _, drop := range []bool{false, true} {
		id := a.Add(Rule{Op: Write, Off: 4, Len: 4, Times: 1, Hang: true})
		held := make(chan error, 1)
		go func() { held <- pwrite(fd, 'L', 4, 4) }()
		for a.Rule(id).Hanging == 0 {
			time.Sleep(time.Millisecond)
		}
		if err := pwrite(fd, 'x', 12, 0); err != nil { // through the same descriptor
			t.Fatal(err)
		}
		if got := pread(other, 12, 0); got != "xxxxxxxxxxxx" {
			t.Errorf("before: %q", got)
		}
		want, wantErr := "xxxxLLLLxxxx", error(nil)
		if drop {
			a.Drop(id, unix.EIO)
			want, wantErr = "xxxxxxxxxxxx", unix.EIO
		} else {
			a.Remove(id)
		}
		if err := <-held; err != wantErr {
			t.Errorf("what was held: %v, want %v", err, wantErr)
		}
		if got := pread(other, 12, 0); got != want {
			t.Errorf("after: %q, want %q", got, want)
		}
	}
	if entries, err := filepath.Glob(a.Backing + "/*"); len(entries) != 1 || err != nil {
		t.Errorf("%v, %v", entries, err)
	}
}
