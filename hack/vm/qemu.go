package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"holdfast/hack/vm/guest"
)

const qemuProgram = "qemu-system-x86_64"

// machine is everything that a boot needs and that stays the same when it has
// to be repeated.
type machine struct {
	kernel    *kernel
	initramfs string
	outDir    string // host side of /results
	memory    string
	cpus      int
	disks     []disk
	renew     func() error // makes the disks anew
	append    string       // more kernel command line
	icount    bool         // emulated: the clock counts instructions
	reboots   bool         // the guest may boot again
	timeout   time.Duration
	stall     time.Duration // without a test's begin or end; 0: no limit
	stdout    *progress
	stderr    *tail
}

// disk is a virtio disk backed by a raw, sparse file.
type disk struct {
	path  string
	cache string // QEMU's cache mode
}

// accelerator is how QEMU runs the guest's instructions.
type accelerator string

const (
	accelKVM accelerator = "kvm"
	accelTCG accelerator = "tcg"
)

func (a accelerator) String() string {
	if a == accelKVM {
		return "native (KVM)"
	}
	return "emulated (TCG)"
}

// outcome is what became of one boot.
type outcome struct {
	up       bool          // user space was reached
	upAfter  time.Duration // from the start of QEMU
	exited   bool          // the guest told an exit code
	code     int
	timedOut bool
	stalled  bool   // timedOut because no test began or ended
	underWay string // the tests that were running then
	running  string // import path of the last Go package whose tests started
	err      string // the guest's own error, or QEMU's
	console  *console
}

// Indices of the sockets handed to QEMU; descriptors start at 3.
const (
	sockConsole = iota
	sockControl
	sockStdout
	sockStderr
	sockCount
)

func (m *machine) args(a accelerator) []string {
	cpu := "max"
	accel := "tcg,thread=multi"
	cmdline := "console=ttyS0 ignore_loglevel panic=-1 rdinit=/init mitigations=off"
	if a == accelKVM {
		cpu, accel = "host", "kvm"
	} else {
		// Five-level page tables only make emulation slower; and emulated processors that
		// wait for a busy host are not stalled, nor is their clock wrong: one that is given
		// up for the HPET makes a guest slow for good.
		cpu = "max,la57=off"
		cmdline += " rcupdate.rcu_cpu_stall_timeout=60 watchdog_thresh=60 tsc=reliable"
		if !m.icount {
			cpu += slowFeatures
			if khz := tscKHz(); khz > 0 {
				cmdline += fmt.Sprintf(" tsc_early_khz=%d", khz)
			}
		}
	}
	if m.reboots {
		cmdline += " modprobe.blacklist=" + uselessModules
	}
	if m.append != "" {
		cmdline += " " + m.append
	}
	var clock []string
	if a == accelTCG && m.icount {
		// 2 ns an instruction of any processor, and an idle guest skips to its
		// next timer. QEMU can count with one thread only.
		accel, clock = "tcg,thread=single", []string{"-icount", "shift=1,sleep=off"}
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-nic", "none",
		"-accel", accel, "-cpu", cpu, "-smp", strconv.Itoa(m.cpus), "-m", m.memory,
		"-kernel", m.kernel.Image, "-initrd", m.initramfs, "-append", cmdline,
		"-virtfs", "local,path=/,mount_tag=" + guest.TagRoot + ",security_model=none,readonly=on,multidevs=remap",
		"-virtfs", "local,path=" + strings.ReplaceAll(m.outDir, ",", ",,") + ",mount_tag=" + guest.TagResults + ",security_model=none,multidevs=remap",
		"-device", "virtio-serial-pci",
		"-device", "virtio-rng-pci",
		"-serial", "chardev:sock0",
	}
	args = append(args, clock...)
	if !m.reboots {
		args = append(args, "-no-reboot")
	}
	for i := range sockCount {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=sock%d,fd=%d", i, 3+i))
	}
	for i, name := range map[int]string{sockControl: guest.PortControl, sockStdout: guest.PortStdout, sockStderr: guest.PortStderr} {
		args = append(args, "-device", fmt.Sprintf("virtserialport,chardev=sock%d,name=%s,nr=%d", i, name, i))
	}
	for i, d := range m.disks {
		args = append(args,
			"-drive", fmt.Sprintf("file=%s,if=none,id=disk%d,format=raw,cache=%s,discard=unmap", strings.ReplaceAll(d.path, ",", ",,"), i, d.cache),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,serial=disk%d", i, i))
	}
	return args
}

// slowFeatures make real processors fast and emulated ones slow: QEMU copies byte by byte
// where the kernel and Go's runtime take ERMS for a reason to use REP MOVSB, saves wide registers
// at each switch, and ends a block of code at each STAC and CLAC. Without them the tests of
// ublk took about a third less time. Benchmarks that count instructions keep them, as earlier
// figures do.
const slowFeatures = ",-erms,-fsrm,-smap,-smep,-avx,-avx2,-xsave"

// uselessModules are those that udev would load for the machine's hardware, at a cost of
// seconds when emulated, and that nobody uses.
const uselessModules = "floppy,ata_piix,ata_generic,psmouse,pcspkr,i2c_piix4,kvm_amd,kvm_intel,kvm,powernow_k8,acpi_cpufreq,joydev,evdev,button,sg,parport_pc,bochs,intel_rapl_msr,rapl"

// boot runs the machine once. bound limits the time to user space. An error
// means that QEMU could not be run.
func (m *machine) boot(ctx context.Context, a accelerator, bound time.Duration) (*outcome, error) {
	var ours, theirs [sockCount]*os.File
	defer func() {
		for i := range sockCount {
			if ours[i] != nil {
				ours[i].Close()
			}
		}
	}()
	for i := range sockCount {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		if err := syscall.SetNonblock(fds[0], true); err != nil {
			return nil, err
		}
		ours[i], theirs[i] = os.NewFile(uintptr(fds[0]), "guest"), os.NewFile(uintptr(fds[1]), "qemu")
	}
	logFile, err := os.Create(filepath.Join(m.outDir, "console.log"))
	if err != nil {
		return nil, err
	}
	defer logFile.Close()

	cmd := exec.Command(qemuProgram, m.args(a)...)
	var qemuErr bytes.Buffer
	cmd.Stderr = &qemuErr
	cmd.ExtraFiles = theirs[:]
	// QEMU goes when we go, however that is.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	err = cmd.Start()
	for _, f := range theirs {
		f.Close()
	}
	if err != nil {
		return nil, err
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()

	o := &outcome{console: &console{copy: logFile}}
	done := make(chan error, sockCount)
	pump := func(w io.Writer, r io.Reader) {
		_, err := io.Copy(w, r)
		if errors.Is(err, syscall.ECONNRESET) {
			err = nil // QEMU was killed with data unread
		}
		// Without a reader the guest would wait for ever.
		_, _ = io.Copy(io.Discard, r)
		done <- err
	}
	go pump(o.console, ours[sockConsole])
	go pump(m.stdout, ours[sockStdout])
	go pump(m.stderr, ours[sockStderr])
	messages := make(chan string)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		s := bufio.NewScanner(ours[sockControl])
		for s.Scan() {
			select {
			case messages <- s.Text():
			case <-stop:
			}
		}
		done <- nil
		close(messages)
	}()

	limit := time.NewTimer(bound)
	defer limit.Stop()
	var grace <-chan time.Time
	watch := time.NewTicker(time.Second)
	defer watch.Stop()
	timeUp := func() {
		o.timedOut, o.underWay = true, m.stdout.underWay()
		// Let the guest show what hangs, then end it.
		fmt.Fprintln(ours[sockControl], guest.MsgDump)
		grace = time.After(10 * time.Second)
	}
	kill := func() { _ = cmd.Process.Kill() }
	for running := true; running; {
		select {
		case msg, ok := <-messages:
			if !ok {
				messages = nil
				continue
			}
			word, rest, _ := strings.Cut(msg, " ")
			switch word {
			case guest.MsgUp:
				if _, panicked := o.console.fault(); panicked {
					kill() // and what comes after that tells nothing
					continue
				}
				if o.up {
					continue // the guest has rebooted, the time is for all boots
				}
				o.up, o.upAfter = true, time.Since(began)
				limit.Reset(m.timeout)
			case guest.MsgReady:
				o.console.markReady()
			case guest.MsgRun:
				o.running = rest
				m.stdout.begin(rest)
			case guest.MsgExit:
				o.exited = true
				o.code, _ = strconv.Atoi(rest)
				limit.Stop()
				grace = time.After(3 * time.Second)
			case guest.MsgError:
				o.err = rest
				grace = time.After(time.Second)
			}
		case err := <-gone:
			running = false
			if err != nil && !o.timedOut && !o.exited && o.err == "" && ctx.Err() == nil {
				o.err = strings.TrimSpace(fmt.Sprintf("QEMU: %v: %s", err, qemuErr.String()))
			}
		case <-limit.C:
			switch {
			case !o.up:
				o.timedOut = true
				kill()
			case !o.timedOut:
				timeUp()
			}
		case <-watch.C:
			if m.stall > 0 && o.up && !o.exited && !o.timedOut && m.stdout.idle() > m.stall {
				o.stalled = true
				timeUp()
			}
		case <-grace:
			kill()
		case <-ctx.Done():
			kill()
			<-gone
			return nil, ctx.Err()
		}
	}
	for range sockCount {
		if err := <-done; err != nil && o.err == "" {
			return nil, fmt.Errorf("bring back the guest's output: %w", err)
		}
		if messages != nil {
			// The reader may still have the exit code to hand over.
			for msg := range messages {
				if rest, ok := strings.CutPrefix(msg, guest.MsgExit+" "); ok {
					o.exited = true
					o.code, _ = strconv.Atoi(rest)
				}
			}
			messages = nil
		}
	}
	return o, nil
}
