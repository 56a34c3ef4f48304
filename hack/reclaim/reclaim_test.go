package reclaim

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hogVariable makes the test binary a program that wants more memory than it may have.
const hogVariable = "HOLDFAST_HOG"

func TestMain(m *testing.M) {
	if size := os.Getenv(hogVariable); size != "" {
		hog(size)
	}
	os.Exit(m.Run())
}

// hog touches and checks every page of its memory, round after round, and says so.
func hog(size string) {
	var n int
	fmt.Sscan(size, &n)
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	const page, step = 4096, 64
	for round := 0; ; round++ {
		for i := 0; i < n; i += page {
			at := mem[i:][:8]
			if want := byte(round + i/page); round > 0 && at[0] != want-1 {
				fmt.Fprintf(os.Stderr, "page %d has %d, want %d\n", i/page, at[0], want-1)
				os.Exit(1)
			} else {
				at[0] = want
			}
			if i/page%step == 0 {
				os.Stdout.Write([]byte{'.'})
			}
		}
	}
}

// stalls takes signs of progress, and keeps the longest time between two.
type stalls struct {
	last, longest atomic.Int64
	count         atomic.Int64
}

func (s *stalls) progress() {
	now := time.Now().UnixNano()
	if was := s.last.Swap(now); was != 0 {
		s.longest.Store(max(s.longest.Load(), now-was))
	}
	s.count.Add(1)
}

// follow starts a program in a cgroup with a bound on its memory; all that it says is
// progress. What it complains of is in the buffer.
func (s *stalls) follow(t *testing.T, limit string, cmd *exec.Cmd) *bytes.Buffer {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said := new(bytes.Buffer)
	cmd.Stderr = said
	group(t, limit, cmd)
	go func() {
		b := make([]byte, 64)
		for {
			if _, err := out.Read(b); err != nil {
				return
			}
			s.progress()
		}
	}()
	return said
}

func (s *stalls) end(t *testing.T, what string) {
	s.progress()
	longest := time.Duration(s.longest.Load())
	t.Logf("%s: %d steps, the longest stall %v", what, s.count.Load(), longest.Round(time.Millisecond))
	if longest > 30*time.Second {
		t.Errorf("%s: a stall of %v", what, longest)
	}
}

func duration(t *testing.T) time.Duration {
	t.Helper()
	if os.Getenv("HOLDFAST_VM") == "" {
		t.Skip("runs in the VM only: see the package's text")
	}
	if _, err := os.Stat("/dev/vda"); err != nil {
		t.Skip("wants a disk: -disk 6G")
	}
	d, err := time.ParseDuration(os.Getenv("HOLDFAST_RECLAIM"))
	if err != nil {
		d = 20 * time.Second
	}
	return d
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, path, value string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

// machine is a daemon whose images lie on the guest's disk.
type machine struct {
	t       *testing.T
	program string
	dir     string
	disk    string // mounted here
}

func newMachine(t *testing.T) *machine {
	program, err := filepath.Abs("../../bin/holdfast-failpoints")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: make failpoints", err)
	}
	run(t, "modprobe", "ublk_drv")
	m := &machine{t: t, program: program, dir: t.TempDir()}
	m.disk = filepath.Join(m.dir, "disk")
	if err := os.Mkdir(m.disk, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-F", "/dev/vda")
	run(t, "mount", "/dev/vda", m.disk)
	t.Cleanup(func() { run(t, "umount", m.disk) })
	log, err := os.Create(filepath.Join(m.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	daemon := exec.Command(program, "daemon", "--run-dir", m.dir+"/run", "--state-dir", m.dir+"/state", "--targets", "none")
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Process.Signal(syscall.SIGTERM)
		if err := daemon.Wait(); err != nil {
			b, _ := os.ReadFile(log.Name())
			t.Errorf("the daemon: %v\n%s", err, b)
		}
	})
	for range 200 {
		if exec.Command(program, "list", "--run-dir", m.dir+"/run").Run() == nil {
			return m
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the daemon does not answer")
	return nil
}

func (m *machine) create(name, size string) string {
	image := filepath.Join(m.disk, name)
	run(m.t, m.program, "image", "create", "--size", size, "--cluster-size", "64K", image)
	return run(m.t, m.program, "create", name, "--run-dir", m.dir+"/run", "--image", image)
}

// group makes a cgroup with a bound on its memory, and starts a command in it.
func group(t *testing.T, limit string, cmd *exec.Cmd) {
	t.Helper()
	const root = "/sys/fs/cgroup"
	exec.Command("mount", "-t", "cgroup2", "none", root).Run() // may be there
	write(t, root+"/cgroup.subtree_control", "+memory")
	dir, err := os.MkdirTemp(root, "reclaim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 100 {
			if os.Remove(dir) == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	write(t, dir+"/memory.max", limit)
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); cmd.Wait() })
}

// TestBufferedWrites: heavy buffered writes, few dirty pages allowed.
func TestBufferedWrites(t *testing.T) {
	limit := duration(t)
	m := newMachine(t)
	disk := m.create("fs", "2G")
	mnt := filepath.Join(m.dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", disk)
	run(t, "mount", disk, mnt)
	t.Cleanup(func() {
		run(t, "umount", mnt)
		run(t, m.program, "remove", "fs", "--run-dir", m.dir+"/run")
	})
	for name, value := range map[string]string{"dirty_bytes": "4194304", "dirty_background_bytes": "1048576"} {
		path := "/proc/sys/vm/" + name
		write(t, path, value)
	}
	// Writers in their own cgroup; each block that one has written is a step.
	var s stalls
	script := `i=0; while :; do dd if=/dev/zero of=` + mnt + `/$0.$i bs=64k count=64 conv=notrunc status=none || exit 1; echo; i=$(( (i+1) % 40 )); done`
	for i := range 4 {
		s.follow(t, "48M", exec.Command("sh", "-c", script, fmt.Sprint("w", i)))
	}
	time.Sleep(limit)
	s.end(t, "buffered writes")
	if s.count.Load() < 10 {
		t.Error("there was no load")
	}
}

// TestSwap: swap on a device of ours, under a program that wants more than there is.
func TestSwap(t *testing.T) {
	limit := duration(t)
	m := newMachine(t)
	disk := m.create("swap", "1G")
	run(t, "mkswap", disk)
	run(t, "swapon", disk)
	t.Cleanup(func() {
		run(t, "swapoff", disk)
		run(t, m.program, "remove", "swap", "--run-dir", m.dir+"/run")
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), hogVariable+"="+fmt.Sprint(256<<20))
	var s stalls
	said := s.follow(t, "96M", cmd)
	time.Sleep(limit)
	s.end(t, "swap")
	stat := run(t, "grep", "-E", "^pswp(in|out) ", "/proc/vmstat")
	t.Logf("%s", strings.ReplaceAll(stat, "\n", ", "))
	if strings.Contains(stat, "pswpout 0") || said.Len() > 0 || s.count.Load() < 10 {
		t.Errorf("%d steps, %s: %s", s.count.Load(), stat, said)
	}
}
