package guest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ports are the open ends of the virtio-serial ports.
type ports struct {
	control, stdout, stderr *os.File
}

// Main runs as process 1: it sets the guest up, runs the commands and powers
// off. It does not return.
func Main() {
	p, err := start()
	if err != nil {
		fmt.Fprintf(os.Stderr, "holdfast-vm: %v\n", err)
		if p.control != nil {
			fmt.Fprintf(p.control, "%s %s\n", MsgError, strings.ReplaceAll(err.Error(), "\n", " "))
		}
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	// Process 1 must not end, the kernel panics if it does.
	for {
		time.Sleep(time.Hour)
	}
}

func start() (ports, error) {
	var p ports
	if err := mountEarly(); err != nil {
		return p, err
	}
	raw, err := os.ReadFile(ConfigPath)
	if err != nil {
		return p, err
	}
	var c Config
	if err := json.Unmarshal(raw, &c); err != nil {
		return p, fmt.Errorf("%s: %w", ConfigPath, err)
	}
	// A module that can't be loaded is told, but what is missing because of
	// it gives the better error: a port or a mount.
	for _, m := range c.Insert {
		if err := insertModule(m); err != nil {
			fmt.Fprintf(os.Stderr, "holdfast-vm: %v\n", err)
		}
	}
	if p, err = openPorts(); err != nil {
		return p, err
	}
	fmt.Fprintln(p.control, MsgUp)
	if err := mountAll(&c); err != nil {
		return p, err
	}
	if c.Systemd {
		if err := prepareSystemd(&c); err != nil {
			return p, err
		}
		return p, becomeSystemd()
	}
	r := &runner{ports: p}
	go r.listen()
	fmt.Fprintln(p.control, MsgReady)
	code := 0
	for i := 0; i < len(c.Commands) && !r.isOver(); i++ {
		if n := r.run(&c.Commands[i]); n != 0 && code == 0 {
			code = n
		}
	}
	syncResults()
	fmt.Fprintln(p.control, MsgExit, code)
	return p, nil
}

// insertModule loads one module file. Compressed ones are left to the kernel
// to unpack (CONFIG_MODULE_DECOMPRESS), which spares us an xz decoder.
func insertModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if filepath.Ext(path) != ".ko" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", filepath.Base(path), err)
	}
	return nil
}

// openPorts finds the virtio-serial ports by their names. They appear some
// time after the driver is there, hence the waiting.
func openPorts() (ports, error) {
	var p ports
	want := map[string]**os.File{PortControl: &p.control, PortStdout: &p.stdout, PortStderr: &p.stderr}
	deadline := time.Now().Add(20 * time.Second)
	for {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			name, err := os.ReadFile(n)
			dst := want[strings.TrimSpace(string(name))]
			if err != nil || dst == nil || *dst != nil {
				continue
			}
			// Opened as a blocking descriptor: a write then waits until the
			// host has taken the data, and nothing is lost at power-off.
			fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(n)), unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err == nil {
				*dst = os.NewFile(uintptr(fd), string(name))
			}
		}
		if p.control != nil && p.stdout != nil && p.stderr != nil {
			return p, nil
		}
		if time.Now().After(deadline) {
			return p, errors.New("the virtio-serial ports did not appear within 20 s: are virtio_pci and virtio_console loaded?")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// listen obeys the host's messages.
func (r *runner) listen() {
	s := bufio.NewScanner(r.control)
	for s.Scan() {
		if s.Text() == MsgDump {
			r.dump()
		}
	}
}
