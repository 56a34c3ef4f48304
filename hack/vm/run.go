package main

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/hack/vm/guest"
)

// Exit codes of the harness that are not a command's own.
const (
	exitFault   = 122 // the guest's kernel panicked, or the guest died
	exitOops    = 123 // the command ended, but the kernel reported a fault
	exitTimeout = 124
	exitHarness = 125 // nothing was tested: no QEMU, no kernel, no boot
	exitSignal  = 130
)

// bootModules are loaded from the initramfs; what is built into the kernel is
// left out.
var bootModules = []string{"virtio_pci", "virtio_console", "virtio_rng", "9pnet_virtio", "9p", "overlay", "virtio_blk", "configfs"}

// writeInitramfs makes the initramfs: ourselves as /init, the configuration
// and the modules needed to reach the root.
func writeInitramfs(path string, k *kernel, c guest.Config) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := checkStatic(self); err != nil {
		return err
	}
	dep, err := os.ReadFile(filepath.Join(k.Modules, "modules.dep"))
	if err != nil {
		return err
	}
	builtin, err := os.ReadFile(filepath.Join(k.Modules, "modules.builtin"))
	if err != nil {
		return err
	}
	modules := parseModulesDep(string(dep))
	wanted := bootModules
	if c.Systemd {
		wanted = append(slices.Clone(wanted), "ext4")
		// ext4 asks for it by what it does, and there is no modprobe yet. Its name changes.
		for _, name := range []string{"crc32c_generic", "crc32c_cryptoapi"} {
			if _, ok := modules[name]; ok {
				wanted = append(wanted, name)
			}
		}
	}
	files, err := modules.closure(parseModulesBuiltin(string(builtin)), wanted...)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := newCPIO(f)
	w.dir("dev")
	w.charDevice("dev/console", 5, 1)
	w.charDevice("dev/null", 1, 3)
	w.copyFile("init", 0o755, self)
	for _, m := range files {
		w.copyFile("modules/"+m, 0o644, filepath.Join(k.Modules, m))
		c.Insert = append(c.Insert, "/modules/"+m)
	}
	config, err := json.Marshal(c)
	if err != nil {
		return err
	}
	w.file(guest.ConfigPath, 0o644, config)
	if err := w.close(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.Close()
}

// checkStatic refuses an executable that wants a dynamic loader, which isn't
// there in the initramfs.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamically linked and can't be the guest's init: build the harness with CGO_ENABLED=0 and without -race", path)
		}
	}
	return nil
}

// run boots the machine until it has a verdict and returns our exit code.
func (m *machine) run(ctx context.Context, choice accelChoice, allowOops bool) int {
	const attempts = 3
	accel := choice.accel
	for attempt := 1; ; {
		bound := boundTCG
		if accel == accelKVM {
			bound = boundKVM
			if choice.probe {
				bound = boundKVMProbe
				logf("trying whether KVM works here (at most %v, once)", bound)
			}
		}
		o, err := m.boot(ctx, accel, bound)
		if errors.Is(err, context.Canceled) {
			logf("interrupted")
			return exitSignal
		}
		if err != nil {
			logf("%v", err)
			return exitHarness
		}
		if o.up {
			if choice.probe && accel == accelKVM {
				choice.remember(accelKVM)
			}
			if accel == accelTCG && o.console.tripped() && attempt < attempts {
				logf("boot %d of %d: the emulated kernel has tripped over a place in its own text that it was patching, which says nothing about what is to be tested: again, from the start", attempt, attempts)
				attempt++
				if err := m.renew(); err != nil {
					logf("%v", err)
					return exitHarness
				}
				continue
			}
			return m.verdict(o, accel, allowOops)
		}
		if choice.probe && accel == accelKVM {
			logf("/dev/kvm is there, but a kernel does not come up on it: emulating from now on")
			choice.remember(accelTCG)
			accel = accelTCG
			continue
		}
		why := o.err
		if why == "" {
			why = "the guest died"
			if o.timedOut {
				why = fmt.Sprintf("not within %v", bound)
			}
		}
		// Emulated kernels die now and then while they patch their own text.
		// That says nothing about what is to be tested.
		if attempt < attempts && !strings.HasPrefix(o.err, "QEMU: ") {
			logf("boot %d of %d did not reach user space (%s), again", attempt, attempts, why)
			attempt++
			continue
		}
		logf("kernel %s did not reach user space in %d boots: %s", m.kernel.Release, attempt, why)
		m.showLog(o, 40)
		return exitHarness
	}
}

// verdict tells what became of a boot that reached user space, the most important last.
func (m *machine) verdict(o *outcome, a accelerator, allowOops bool) int {
	fault, panicked := o.console.fault()
	code, words := 0, ""
	switch {
	case o.timedOut && !panicked:
		code, words = exitTimeout, fmt.Sprintf("FAIL: not done after %v (-timeout)", m.timeout)
		if o.stalled {
			words = fmt.Sprintf("FAIL: no test began or ended for %v (-stall)", m.stall)
		}
		if o.underWay != "" {
			words += ", and this was running: " + o.underWay
		}
	case o.exited && fault != "" && !allowOops:
		code, words = exitOops, fmt.Sprintf("FAIL: the kernel reported a fault while the command ran (it exited with %d): %s", o.code, strings.TrimSpace(fault))
	case o.exited:
		if code = o.code; code != 0 {
			words = fmt.Sprintf("the command exited with %d on %s, %s", code, m.kernel.Release, a)
		}
	case panicked:
		code, words = exitFault, "FAIL: the guest's kernel panicked"
	case o.err != "":
		code, words = exitHarness, "the guest could not be set up: "+o.err
	default:
		code, words = exitFault, "FAIL: the guest ended without a verdict"
	}
	if o.running != "" && !o.exited {
		// Nobody else says so in the form that go test has.
		fmt.Fprintf(m.stdout, "FAIL\t%s\t[the guest did not live to its end]\n", o.running)
	}
	if code != 0 {
		m.showLog(o, 60)
	}
	if w := o.console.warning(); w != "" {
		logf("the kernel warned: %s", w)
	}
	logf("kernel %s, %s, %d CPUs, %s: user space after %.1f s", m.kernel.Release, a, m.cpus, m.memory, o.upAfter.Round(100*time.Millisecond).Seconds())
	if o.timedOut {
		show("the test's goroutine:", m.stderr.testGoroutine(15))
	}
	if code != 0 {
		show("tests:", m.stdout.failures())
		logf("%s", words)
	}
	return code
}

func show(title string, lines []string) {
	if len(lines) == 0 {
		return
	}
	logf("%s", title)
	for _, l := range lines {
		fmt.Fprintf(os.Stderr, "    %s\n", l)
	}
}

func (m *machine) showLog(o *outcome, limit int) {
	show("from the guest's kernel log:", o.console.report(limit))
	logf("the whole kernel log is in %s", filepath.Join(m.outDir, "console.log"))
}
