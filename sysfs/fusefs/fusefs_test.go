package fusefs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/sysfs"
)

// These tests mount. In a VM of hack/vm they must run; elsewhere they do for
// root where FUSE is. The process' own accesses to its mounts are system calls
// without package os, which would hand the files to the poller (see doc.go).

// TestShell uses a tree as people do.
func TestShell(t *testing.T) {
	root, stored := switches()
	dir, _ := mountTree(t, root)
	for _, c := range []struct{ script, want string }{
		{`cat queue/standby size; cat < link`, "off\n2048\noff\n"},
		{`echo on > queue/standby && cat queue/standby`, "on\n"},
		{`echo off >> link && cat link`, "off\n"},
		{`printf on > link; read -r v < link; echo "<$v>"`, "<on>\n"},
		{`echo off | tee queue/standby; cat link`, "off\noff\n"},
		{`echo on | tee -a queue/standby >/dev/null; head -c 2 link`, "on"},
		{`echo maybe > link`, "bash: line 1: echo: write error: Invalid argument\nexit status 1\n"},
		{`cat link`, "on\n"},
		{`echo 1 > size`, "bash: line 1: size: Permission denied\nexit status 1\n"},
		{`echo 1 > trigger`, "bash: line 1: echo: write error: Device or resource busy\nexit status 1\n"},
		{`cat trigger`, "cat: trigger: Permission denied\nexit status 1\n"},
		{`cat gone`, "cat: gone: No such device\nexit status 1\n"},
		{`echo x > nothing`, "bash: line 1: nothing: Permission denied\nexit status 1\n"},
		{`cat nothing`, "cat: nothing: No such file or directory\nexit status 1\n"},
		{`[ -e size ] && [ ! -e nothing ] && [ -d queue ] && [ -L link ] && [ -f link ] && echo yes`, "yes\n"},
		{`find . | sort`, ".\n./gone\n./link\n./long\n./queue\n./queue/standby\n./size\n./trigger\n"},
		{`find . -type f -perm -u+w | sort`, "./queue/standby\n./trigger\n"},
		{`stat -c '%A %s %U %n %F' size queue/standby trigger queue link`, "-r--r--r-- 4096 root size regular file\n" +
			"-rw-r--r-- 4096 root queue/standby regular file\n--w------- 4096 root trigger regular file\n" +
			"dr-xr-xr-x 0 root queue directory\nlrwxrwxrwx 13 root link symbolic link\n"},
		{`ls; ls -l size | cut -d' ' -f1,2,3,4,5; readlink -f link | xargs basename`, "gone\nlink\nlong\nqueue\nsize\ntrigger\n-r--r--r-- 1 root root 4096\nstandby\n"},
		{`cat long | wc -c; wc -c < size; grep -c . size`, "100001\n5\n1\n"},
		{`cp size /tmp/fusefs-$$ && cat /tmp/fusefs-$$; rm /tmp/fusefs-$$`, "2048\n"},
		{`dd if=size bs=1 2>/dev/null; dd if=size bs=1 skip=2 2>/dev/null; tail -c 3 size`, "2048\n48\n48\n"},
		{`echo off | dd of=link conv=fsync 2>/dev/null && sync link && cat link`, "off\n"},
		{`touch size && truncate -s 0 link && cat link && stat -c %s link/../queue/standby 2>&1 | tail -c 16; stat -c %s queue/standby`, "off\nNot a directory\n4096\n"},
		{`rm -f size; mkdir x; rmdir queue; ln -s a b; ln size c; mv size d; chmod 777 size; mknod p p`, "" +
			"rm: cannot remove 'size': Operation not permitted\nmkdir: cannot create directory 'x': Operation not permitted\n" +
			"rmdir: failed to remove 'queue': Operation not permitted\nln: failed to create symbolic link 'b': Operation not permitted\n" +
			"ln: failed to create hard link 'c' => 'size': Operation not permitted\nmv: cannot move 'size' to 'd': Operation not permitted\n" +
			"chmod: changing permissions of 'size': Operation not permitted\nmknod: p: Operation not permitted\nexit status 1\n"},
		{`exec 3<>queue/standby; read -r a <&3; echo on >&3; exec 3>&-; echo $a; cat queue/standby`, "off\non\n"},
		{`df . | tail -1 | cut -d' ' -f1`, "test\n"},
	} {
		if got := sh(t, dir, c.script); got != c.want {
			t.Errorf("%s\n got: %q\nwant: %q", c.script, got, c.want)
		}
	}
	before := len(stored())
	sh(t, dir, `(echo on; echo off) > link; printf '' > link; : > link; echo -n on > link`)
	if got := stored()[before:]; strings.Join(got, ",") != "on,off,on" {
		t.Errorf("stored: %q, want one for each write", got)
	}
}

// TestErrno sees the errors of system calls.
func TestErrno(t *testing.T) {
	root, stored := switches()
	dir, _ := mountTree(t, root)
	standby := dir + "/queue/standby"
	for _, c := range []struct {
		what string
		got  error
		want error
	}{
		{"a right value", write(standby, "on\n", unix.O_TRUNC), nil},
		{"a wrong value", write(standby, "x", 0), unix.EINVAL},
		{"as long as can be", write(standby, strings.Repeat("x", sysfs.MaxValue), 0), unix.EINVAL},
		{"too long", write(standby, strings.Repeat("x", sysfs.MaxValue+1), 0), unix.E2BIG},
		{"longer than a request", write(standby, strings.Repeat("x", 3*maxRequest), 0), unix.E2BIG},
		{"Store's own error", write(dir+"/trigger", "x", 0), unix.EBUSY},
		{"root on 0444", write(dir+"/size", "x", 0), unix.EACCES},
		{"root truncates 0444", unix.Truncate(dir+"/size", 0), unix.EACCES},
		{"a new file", write(dir+"/new", "x", unix.O_CREAT), unix.EACCES},
		{"a directory", write(dir+"/queue", "x", 0), unix.EISDIR},
		{"below a file", write(dir+"/size/x", "x", 0), unix.ENOTDIR},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
	if n := len(stored()); n != 3 {
		t.Errorf("Store was called %d times, want 3: not for what is too long", n)
	}
	// In many parts, and still one write.
	fd, err := unix.Open(standby, unix.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if n, err := unix.Writev(fd, [][]byte{[]byte("o"), []byte("f"), []byte("f"), []byte("\n")}); n != 4 || err != nil {
		t.Errorf("writev: %d, %v", n, err)
	}
	if n, err := unix.Pwrite(fd, []byte("on"), 3000); n != 2 || err != nil {
		t.Errorf("pwrite: %d, %v", n, err)
	}
	if got := stored()[3:]; strings.Join(got, ",") != "off,on" {
		t.Errorf("stored %q", got)
	}
}

// TestFresh reads a value that is another one each time it is asked for.
func TestFresh(t *testing.T) {
	var shown atomic.Int64
	dir, _ := mountTree(t, &sysfs.Dir{Entries: []sysfs.Entry{
		&sysfs.Attr{Name: "count", Mode: 0o444, Show: func() (string, error) {
			n := shown.Add(1)
			return strings.Repeat(fmt.Sprint(n%10), 300), nil
		}}}})
	fd, err := unix.Open(dir+"/count", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if shown.Load() != 0 {
		t.Error("opening asks for the value")
	}
	want := func(n int) string { return strings.Repeat(fmt.Sprint(n), 300) + "\n" }
	for i := 1; i < 4; i++ {
		if got, err := readOn(fd); got != want(i) || err != nil {
			t.Errorf("%.20q... of %d bytes, %v; want all of %d", got, len(got), err, i)
		}
		if _, err := unix.Seek(fd, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 10)
	for _, c := range []struct {
		off  int64
		want string
	}{{0, "4444444444"}, {10, "4444444444"}, {295, "44444\n"}, {301, ""}, {9000, ""}, {0, "5555555555"}} {
		n, err := unix.Pread(fd, buf, c.off)
		if err != nil || string(buf[:n]) != c.want {
			t.Errorf("pread at %d: %q, %v; want %q", c.off, buf[:n], err, c.want)
		}
	}
	if got, err := read(dir + "/count"); got != want(6) || err != nil {
		t.Errorf("a new open: %.20q, %v", got, err)
	}
	// cat may splice and wc may map: no page of an old value may be left.
	for i := 7; i < 12; i++ {
		if got := sh(t, dir, "cat count | head -c 1"); got != fmt.Sprint(i%10) {
			t.Errorf("cat: %q, want %d", got, i%10)
		}
	}
}

// TestConcurrent reads one attribute by many, who each see one whole value.
func TestConcurrent(t *testing.T) {
	var shown atomic.Int64
	dir, _ := mountTree(t, &sysfs.Dir{Entries: []sysfs.Entry{
		&sysfs.Attr{Name: "count", Mode: 0o444, Show: func() (string, error) {
			return strings.Repeat(fmt.Sprint(shown.Add(1)%10), 1000), nil
		}}}})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				got, err := read(dir + "/count")
				if err != nil || len(got) != 1001 || strings.Trim(got[:1000], got[:1]) != "" {
					t.Errorf("%.20q... of %d bytes, %v", got, len(got), err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := shown.Load(); n != 400 {
		t.Errorf("400 opens, and %d values", n)
	}
}

// TestComeAndGo has directories whose names change.
func TestComeAndGo(t *testing.T) {
	var mu sync.Mutex
	generation := map[string]int{}
	set := func(name string, n int) {
		mu.Lock()
		defer mu.Unlock()
		generation[name] = n
		if n == 0 {
			delete(generation, name)
		}
	}
	dir, _ := mountTree(t, &sysfs.Dir{Entries: []sysfs.Entry{&sysfs.Dir{Name: "block", More: func() (all []sysfs.Entry) {
		mu.Lock()
		defer mu.Unlock()
		for name, n := range generation {
			all = append(all, &sysfs.Dir{Name: name, Entries: []sysfs.Entry{&sysfs.Attr{Name: "n", Mode: 0o444,
				Show: func() (string, error) {
					mu.Lock()
					defer mu.Unlock()
					if generation[name] != n {
						return "", unix.ENODEV
					}
					return fmt.Sprint(n), nil
				}}}}, &sysfs.Link{Name: fmt.Sprint("ublkb", n), Target: name})
		}
		return all
	}}}})
	check := func(script, want string) {
		t.Helper()
		if got := sh(t, dir, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	check("ls block; cat block/a/n", "cat: block/a/n: No such file or directory\nexit status 1\n")
	set("a", 1)
	check("ls block; cat block/a/n block/ublkb1/n", "a\nublkb1\n1\n1\n")
	fd, err := unix.Open(dir+"/block/a/n", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	set("a", 0)
	check("ls block; [ -e block/a ] || [ -e block/ublkb1/n ] || echo no", "no\n")
	set("a", 2) // another one of the same name
	check("ls block; cat block/a/n; cat block/ublkb1/n", "a\nublkb2\n2\ncat: block/ublkb1/n: No such file or directory\nexit status 1\n")
	if got, err := readOn(fd); err != unix.ENODEV {
		t.Errorf("the old one, still open, reads %q, %v; want ENODEV", got, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size != sysfs.MaxValue {
		t.Errorf("fstat of it: %v, size %d", err, st.Size)
	}
	// In a directory that goes away.
	shell := bash(dir, "cd block/a && cat n && read x; ls; cat n; ls \"$TREE/block\"")
	in, _ := shell.StdinPipe()
	pipe, _ := shell.StdoutPipe()
	shell.Stderr = shell.Stdout
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(pipe)
	if line, err := out.ReadString('\n'); line != "2\n" {
		t.Errorf("%q, %v", line, err)
	}
	set("a", 0)
	set("c", 4)
	in.Write([]byte("\n"))
	rest, _ := io.ReadAll(out)
	shell.Wait()
	if got := string(rest); !strings.Contains(got, "cat: n: No such file or directory\n") || !strings.HasSuffix(got, "c\nublkb4\n") {
		t.Errorf("in a directory that is gone: %q", got)
	}
	set("b", 3)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for j := range 100 {
				switch {
				case i == 0:
					set("b", j%2*3)
				case i == 1:
					if out := sh(t, dir, "find . >/dev/null"); j%20 == 0 && strings.Contains(out, "rror") {
						t.Log(out) // a name may vanish while it looks
					}
					if j == 10 {
						return
					}
				default:
					if got, err := read(dir + "/block/b/n"); err == nil && got != "3\n" || err != nil && err != unix.ENOENT && err != unix.ENODEV {
						t.Errorf("%q, %v", got, err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// TestUnprivileged reads and writes as nobody.
func TestUnprivileged(t *testing.T) {
	root, stored := switches()
	dir, _ := mountTree(t, root)
	for d := dir; d != "/" && d != "/tmp"; d = filepath.Dir(d) {
		os.Chmod(filepath.Dir(d), 0o755)
	}
	for _, c := range []struct{ script, want string }{
		{`cat queue/standby size; ls | wc -l; find . | wc -l`, "off\n2048\n6\n8\n"},
		{`echo on > queue/standby`, "bash: line 1: queue/standby: Permission denied\nexit status 1\n"},
		{`echo on > size`, "bash: line 1: size: Permission denied\nexit status 1\n"},
		{`cat trigger`, "cat: trigger: Permission denied\nexit status 1\n"},
		{`echo x > new`, "bash: line 1: new: Permission denied\nexit status 1\n"},
		{`truncate -s 0 queue/standby`, "truncate: cannot open 'queue/standby' for writing: Permission denied\nexit status 1\n"},
		{`[ -r size ] && [ ! -w size ] && [ ! -w queue/standby ] && [ ! -x size ] && echo yes`, "yes\n"},
	} {
		cmd := bash(dir, c.script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		got := string(out)
		if err != nil {
			got += err.Error() + "\n"
		}
		if got != c.want {
			t.Errorf("as nobody: %s: %q, want %q", c.script, got, c.want)
		}
	}
	if len(stored()) != 0 {
		t.Errorf("nobody stored %q", stored())
	}
}
