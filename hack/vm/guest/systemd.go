package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// With Config.Systemd the guest's process 1 becomes systemd: it sets the root up as
// always, but on the first disk instead of on a tmpfs, and executes systemd. Commands are
// then run by a service, the agent, which is the same program again. When it is told to
// stop while its command runs, the machine is being rebooted by that command, and the agent
// runs it again after the boot.

const (
	systemdPath = "/lib/systemd/systemd"
	agentDir    = "/run/holdfast-vm"
	agentPath   = agentDir + "/agent"
	agentConfig = agentDir + "/config.json"
	rootDisk    = "/dev/vda" // the first -disk
	preparedTag = "/etc/holdfast-vm"
)

const agentUnit = `[Unit]
Description=The command of hack/vm
After=multi-user.target
[Service]
ExecStart=` + agentPath + `
TimeoutStopSec=10s
`

// IsAgent tells whether this process is the service in a guest with systemd.
func IsAgent() bool { return os.Args[0] == agentPath }

// waitRootDisk waits for the disk's node, which appears when its driver has looked at it.
func waitRootDisk() error {
	for try := 0; ; try++ {
		_, err := os.Stat(rootDisk)
		if err == nil || try == 1000 {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// prepareSystemd takes away what the machine's administrator has configured (units that are
// switched on, mounts, init scripts), once, and installs the agent's unit, which is gone
// with every boot. What Debian's packages switch on by themselves stays.
func prepareSystemd(c *Config) error {
	if _, err := os.Stat(systemdPath); err != nil {
		return fmt.Errorf("no systemd here: install the packages listed in hack/packages: %w", err)
	}
	if _, err := os.Stat(preparedTag); errors.Is(err, os.ErrNotExist) {
		// With a mark of a container systemd would leave much of its work to the
		// host: syncing and unmounting at the end, for one.
		for _, path := range []string{"/etc/systemd/system", "/var/log/journal", "/etc/fstab", "/.dockerenv"} {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
		links, _ := filepath.Glob("/etc/rc?.d/[SK]*")
		for _, l := range links {
			if err := os.Remove(l); err != nil {
				return err
			}
		}
		const wants = "/etc/systemd/system/multi-user.target.wants"
		for _, dir := range []string{wants, "/var/log/journal"} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		// What Debian switches on for everybody: mounts with _netdev.
		if err := os.Symlink("/lib/systemd/system/remote-fs.target", wants+"/remote-fs.target"); err != nil {
			return err
		}
		for _, file := range []string{"/etc/fstab", preparedTag} {
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				return err
			}
		}
	}
	const units = "/run/systemd/system"
	if err := os.MkdirAll(units+"/multi-user.target.wants", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(units+"/holdfast-vm.service", []byte(agentUnit), 0o644); err != nil {
		return err
	}
	if err := os.Symlink("../holdfast-vm.service", units+"/multi-user.target.wants/holdfast-vm.service"); err != nil {
		return err
	}
	// The console is for the kernel's log, and a module for screens takes long to load.
	for _, unit := range []string{"serial-getty@ttyS0.service", "modprobe@drm.service"} {
		if err := os.Symlink("/dev/null", units+"/"+unit); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(agentDir, 0o755); err != nil {
		return err
	}
	config, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := os.WriteFile(agentConfig, config, 0o600); err != nil {
		return err
	}
	return copySelf(agentPath)
}

// copySelf copies this program out of the initramfs, which is out of reach afterwards.
func copySelf(to string) error {
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, from); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// becomeSystemd does not return when all is well. The ports are closed by it: they can be
// opened only once, and the agent will want them.
func becomeSystemd() error {
	err := unix.Exec(systemdPath, []string{systemdPath, "--unit=multi-user.target"}, []string{"PATH=" + Path, "TERM=linux"})
	return fmt.Errorf("execute %s: %w", systemdPath, err)
}

// Agent runs the commands as a service of systemd and then powers the guest off. When it is
// stopped before, it ends and leaves the guest to what is happening to it.
func Agent() {
	var stopping atomic.Bool
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() { <-signals; stopping.Store(true) }()

	p, err := openPorts()
	if err != nil {
		fmt.Fprintf(os.Stderr, "holdfast-vm: %v\n", err)
		os.Exit(1)
	}
	var c Config
	raw, err := os.ReadFile(agentConfig)
	if err == nil {
		err = json.Unmarshal(raw, &c)
	}
	if err != nil {
		fmt.Fprintf(p.control, "%s %s\n", MsgError, strings.ReplaceAll(err.Error(), "\n", " "))
		os.Exit(1)
	}
	r := &runner{ports: p, service: true}
	go r.listen()
	fmt.Fprintln(p.control, MsgReady)
	code := 0
	for i := 0; i < len(c.Commands) && !r.isOver(); i++ {
		if pkg := c.Commands[i].Package; pkg != "" {
			fmt.Fprintln(p.control, MsgRun, pkg)
		}
		r.began = time.Now()
		n := r.exec(&c.Commands[i])
		// The signal comes to the command as well, and maybe earlier.
		for try := 0; try < 200 && n == exitSignalBase+int(syscall.SIGTERM) && !stopping.Load(); try++ {
			time.Sleep(10 * time.Millisecond)
		}
		if stopping.Load() {
			return
		}
		if n = r.tell(&c.Commands[i], n); n != 0 && code == 0 {
			code = n
		}
	}
	syncResults()
	fmt.Fprintln(p.control, MsgExit, code)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
