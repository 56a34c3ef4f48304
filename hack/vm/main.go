// Command vm boots a real Linux kernel in QEMU and runs a command, or Go
// packages' tests, in it. holdfast needs drivers that the machine at hand may
// not have or may not let one load; any machine with QEMU can run this.
//
//	go run ./hack/vm -- sh -c 'modprobe ublk_drv && ls -l /dev/ublk-control'
//	go run ./hack/vm -kernel oldest -test ./ublk/... -- -test.run Stop
//
// # What the guest sees
//
// The command runs as root, in the caller's directory. The root file system is
// the machine's own, seen through 9p, with a tmpfs above it: every tool and
// file is there, everything can be written to, and nothing of it reaches the
// machine. Three things differ. /tmp, /run and /dev/shm are fresh and empty
// (the caller's directory is shown all the same if it lies there, and so is
// what -files names). /results is a directory of the host, writable, given by
// -out: that is how files come back. /lib/modules has the kernel's modules, so
// modprobe and automatic loading work. There is no network but lo, no standard
// input, and file systems that the machine has mounted below / are included.
//
// Benchmarks belong on /tmp (a tmpfs) or a disk (-disk), not on 9p.
//
// With -systemd process 1 is the machine's systemd, with nothing switched on but what
// Debian's packages bring with them. Changes to the root are kept on the first -disk, and
// the command is run again when it has rebooted the guest (systemctl reboot): it
// tells its boots apart by what it left on the disk. /results/console.log has what
// was said on the way down. The guest is powered off when the command ends.
//
// When the command ends, the guest does: what it left running is killed.
// Standard output and error come back byte for byte, each in its own order, but
// not in order with each other; use 2>&1 in the guest where that matters.
//
// # Exit codes
//
// The command's own (128+n if signal n killed it), or
//
//	122  the guest's kernel panicked, or the guest died
//	123  the command ended, but the kernel reported an oops, BUG, hung task
//	     or stall meanwhile (-allow-oops leaves the command's code)
//	124  the command did not end within -timeout, or its tests stood still for -stall
//	125  nothing was tested: QEMU, kernel or boot failed; one line says why
//	130  interrupted
//
// After a failure the last lines are about what matters most, as they may be all that
// its reader sees: first the kernel's log, then where the test is that was running, last
// which tests failed, or ran and for how long, and the verdict.
//
// # Kernels
//
// Kernels are Debian's. A name stands for one: a series such as 6.12; oldest, the oldest
// series that holdfast promises to run on; newest, which is what -kernel says by default. It
// is looked up in all suites that answer (hack/debian), by what their linux-image-amd64 points
// to, through the machine's own mirror and keyring but with none of apt's state. The best that
// can be fetched is kept in ${XDG_CACHE_HOME:-~/.cache}/holdfast/kernels, and the name looked up
// again after a day, or at once by -refresh. Where no suite answers, or none has the
// series any more, what is in the cache will do, and the next try comes after an hour.
//
// # Environment
//
//	HOLDFAST_VM_CACHE   another place for the kernels
//	HOLDFAST_VM_MIRROR  Debian mirror, if the machine's apt sources have none
//	HOLDFAST_VM_ACCEL   kvm or tcg; by default a first boot tries KVM, and the
//	                    verdict is kept until the machine boots again
//
// In the guest, HOLDFAST_VM is set to the kernel's series, and HOLDFAST_VM_INIT to systemd with -systemd.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"holdfast/hack/vm/guest"
)

// options are the command line.
type options struct {
	kernel    string
	timeout   time.Duration
	stall     time.Duration
	memory    string
	cpus      int
	out       string
	files     list
	env       list
	disks     list
	append    string
	allowOops bool
	icount    bool
	systemd   bool
	refresh   bool
	fetchOnly bool
	test      list
	race      bool
	tags      string
	args      []string
}

// list is a flag that can be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func init() {
	// QEMU is to die with us, and the kernel ties that to the thread that
	// started it: so that must be one that lives as long as we do.
	runtime.LockOSThread()
}

func main() {
	if guest.IsInit() {
		guest.Main()
	}
	if guest.IsAgent() {
		guest.Agent()
		return
	}
	o, err := parse(os.Args[1:])
	if err != nil {
		if err != flag.ErrHelp {
			logf("%v", err)
		}
		os.Exit(exitHarness)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code, err := execute(ctx, o)
	stop()
	if err != nil {
		logf("%v", err)
		code = exitHarness
	}
	os.Exit(code)
}

func logf(format string, args ...any) { fmt.Fprintf(os.Stderr, "vm: "+format+"\n", args...) }

func parse(args []string) (*options, error) {
	var o options
	f := flag.NewFlagSet("vm", flag.ContinueOnError)
	f.StringVar(&o.kernel, "kernel", newest, "kernel's `name`: "+newest+", "+oldest+", or a series such as "+oldestSeries)
	f.DurationVar(&o.timeout, "timeout", 10*time.Minute, "end the command after this `time`, counted from user space")
	f.DurationVar(&o.stall, "stall", 0, "with -test: end the command when for this `time` no test begins or ends (0: never)")
	f.StringVar(&o.memory, "mem", "4G", "the guest's memory, as a `size` for QEMU's -m")
	f.IntVar(&o.cpus, "cpus", 2, "the guest's `number` of processors")
	f.StringVar(&o.out, "out", "", "`directory` that is /results in the guest, and gets console.log (default: a temporary one, removed if it stays empty)")
	f.Var(&o.files, "files", "show this `path` of the host's /tmp, /run or /dev/shm in the guest as well (repeatable)")
	f.Var(&o.env, "env", "set `KEY=VALUE` in the guest; KEY alone copies it from here (repeatable)")
	f.Var(&o.disks, "disk", "add a virtio disk of this `size[,cache]`, /dev/vda and on; cache as QEMU has it, default unsafe (repeatable)")
	f.StringVar(&o.append, "append", "", "more kernel command `line`")
	f.BoolVar(&o.allowOops, "allow-oops", false, "do not fail when the kernel reports a fault")
	f.BoolVar(&o.icount, "icount", false, "where the guest is emulated, let its clock count instructions: timings then are costs in instructions and do not depend on what else the machine does")
	f.BoolVar(&o.systemd, "systemd", false, "boot the machine's systemd; the first -disk keeps what changes over reboots")
	f.BoolVar(&o.refresh, "refresh", false, "look the kernel's name up, however short ago that was done")
	f.BoolVar(&o.fetchOnly, "fetch", false, "only fetch the kernel")
	f.Var(&o.test, "test", "run the Go tests of this package `pattern` (repeatable); arguments after -- go to the test binaries")
	f.BoolVar(&o.race, "race", false, "with -test: build with the race detector")
	f.StringVar(&o.tags, "tags", "", "with -test: build `tags`")
	f.Usage = func() {
		fmt.Fprintf(f.Output(), "usage: vm [flags] -- COMMAND [ARGUMENT...]\n       vm [flags] -test PATTERN [-- TESTFLAG...]\n")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return nil, flag.ErrHelp // the flag package has told the error
	}
	o.args = f.Args()
	switch {
	case len(o.args) == 0 && len(o.test) == 0 && !o.fetchOnly:
		f.Usage()
		return nil, flag.ErrHelp
	case o.cpus < 1:
		return nil, fmt.Errorf("-cpus %d: want at least 1", o.cpus)
	case o.systemd && len(o.disks) == 0:
		return nil, fmt.Errorf("-systemd wants a -disk to keep the root's changes on")
	case o.timeout <= 0:
		return nil, fmt.Errorf("-timeout %v: want more than 0", o.timeout)
	case o.stall < 0 || o.stall > 0 && len(o.test) == 0:
		return nil, fmt.Errorf("-stall %v: want more than 0, and -test", o.stall)
	}
	return &o, nil
}

func execute(ctx context.Context, o *options) (int, error) {
	if runtime.GOARCH != "amd64" {
		return 0, fmt.Errorf("the harness boots amd64 kernels with this machine's programs; this machine is %s", runtime.GOARCH)
	}
	if _, err := exec.LookPath(qemuProgram); err != nil && !o.fetchOnly {
		return 0, fmt.Errorf("no %s: install the packages listed in hack/vm/packages", qemuProgram)
	}
	cache, err := cacheDir()
	if err != nil {
		return 0, err
	}
	k, err := newFinder(cache).find(o.kernel, o.refresh)
	if err != nil {
		return 0, fmt.Errorf("kernel %s: %w", o.kernel, err)
	}
	if o.fetchOnly {
		logf("%s has kernel %s (%s)", cache, k.Release, k.Version)
		return 0, nil
	}
	choice, err := chooseAccel(cache)
	if err != nil {
		return 0, err
	}
	outDir, cleanOut, err := prepareOut(o.out)
	if err != nil {
		return 0, err
	}
	temp, err := os.MkdirTemp("", "holdfast-vm-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(temp)
	config, err := o.config(k, outDir)
	if err != nil {
		return 0, err
	}
	if len(config.Commands) == 0 {
		return 0, nil // packages without tests
	}
	m := &machine{
		kernel: k, initramfs: filepath.Join(temp, "initramfs"), outDir: outDir,
		memory: o.memory, cpus: o.cpus, append: o.append, icount: o.icount, reboots: o.systemd, timeout: o.timeout, stall: o.stall,
		stdout: &progress{to: os.Stdout}, stderr: &tail{to: os.Stderr},
	}
	m.renew = func() (err error) {
		if m.disks, err = makeDisks(temp, o.disks); err != nil || !o.systemd {
			return err
		}
		if out, err := exec.Command("mkfs.ext4", "-q", "-F", m.disks[0].path).CombinedOutput(); err != nil {
			return fmt.Errorf("mkfs.ext4 on the first disk: %w: %s", err, out)
		}
		return nil
	}
	if err := m.renew(); err != nil {
		return 0, err
	}
	if err := writeInitramfs(m.initramfs, k, *config); err != nil {
		return 0, err
	}
	code := m.run(ctx, choice, o.allowOops)
	cleanOut(code)
	return code, nil
}

// prepareOut makes the output directory. clean, given our exit code, removes
// what nobody needs of a temporary one: our test binaries, the kernel log of a
// success, and the directory itself if the guest has left nothing there.
func prepareOut(dir string) (path string, clean func(code int), err error) {
	if dir != "" {
		if path, err = filepath.Abs(dir); err != nil {
			return "", nil, err
		}
		return path, func(int) {}, os.MkdirAll(path, 0o755)
	}
	path, err = os.MkdirTemp("", "holdfast-results-")
	return path, func(code int) {
		os.RemoveAll(filepath.Join(path, "tests"))
		if code != 0 {
			return
		}
		os.Remove(filepath.Join(path, "console.log"))
		if os.Remove(path) != nil {
			logf("the guest's files are in %s", path)
		}
	}, err
}

// config tells the guest what to do.
func (o *options) config(k *kernel, outDir string) (*guest.Config, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	c := &guest.Config{
		Hostname:   "holdfast-vm",
		Release:    k.Release,
		ModulesDir: k.Modules,
		Systemd:    o.systemd,
	}
	for _, p := range append([]string{cwd}, o.files...) {
		if p, err = filepath.Abs(p); err != nil {
			return nil, err
		}
		if _, err := os.Stat(p); err != nil {
			return nil, fmt.Errorf("-files: %w", err)
		}
		if strings.HasPrefix(p, "/tmp/") || strings.HasPrefix(p, "/run/") || strings.HasPrefix(p, "/dev/shm/") {
			c.Show = append(c.Show, p)
		}
	}
	env := []string{
		"PATH=" + guest.Path, "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh",
		"LANG=C.UTF-8", "PWD=" + cwd, "HOLDFAST_VM=" + k.Series,
	}
	if o.systemd {
		env = append(env, "HOLDFAST_VM_INIT=systemd")
	}
	for _, e := range o.env {
		if !strings.Contains(e, "=") {
			v, ok := os.LookupEnv(e)
			if !ok {
				continue
			}
			e += "=" + v
		}
		env = append(env, e)
	}
	if len(o.test) == 0 {
		c.Commands = []guest.Command{{Args: o.args, Dir: cwd, Env: env}}
		return c, nil
	}
	c.Commands, err = compileTests(o.test, o.race, o.tags, outDir, env, o.args, o.timeout)
	return c, err
}

var diskForm = regexp.MustCompile(`^([0-9]+)([KMGT]?)(?:,([a-z]+))?$`)

// makeDisks makes a sparse file for each -disk.
func makeDisks(dir string, specs []string) ([]disk, error) {
	var out []disk
	for i, s := range specs {
		p := diskForm.FindStringSubmatch(s)
		if p == nil {
			return nil, fmt.Errorf("-disk %q: want a size such as 512M or 2G, and maybe a comma and a cache mode of QEMU", s)
		}
		size, err := strconv.ParseInt(p[1], 10, 64)
		shift := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[p[2]]
		if err != nil || size<<shift>>shift != size {
			return nil, fmt.Errorf("-disk %q: too large", s)
		}
		d := disk{filepath.Join(dir, fmt.Sprintf("disk%d", i)), p[3]}
		if d.cache == "" {
			d.cache = "unsafe"
		}
		if err := os.WriteFile(d.path, nil, 0o600); err != nil {
			return nil, err
		}
		if err := os.Truncate(d.path, size<<shift); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}
