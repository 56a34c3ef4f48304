// Package guest is the half of the VM harness that runs inside the virtual
// machine, as its process 1.
//
// There is no separate program: the harness puts its own executable into the
// initramfs as /init and tells itself apart by being process 1 there (see
// [IsInit]). So nothing has to be built, found or kept in step, and the guest
// needs neither a busybox nor a shell to come up: modules are loaded, file
// systems mounted and commands started by system calls.
//
// The two halves talk over three virtio-serial ports, named by the constants
// below. Commands' output has ports of its own, so that kernel messages (which
// go to the serial console) can't get between it, and it arrives byte for
// byte: a write to a port returns only when the host has taken the data.
package guest

import "os"

// Names of the virtio-serial ports, as seen in /sys/class/virtio-ports/*/name.
const (
	PortControl = "holdfast.ctl" // lines, both ways; see the Msg constants
	PortStdout  = "holdfast.out" // the commands' standard output
	PortStderr  = "holdfast.err" // the commands' standard error
)

// Messages on the control port: one line each, the word and what follows it.
const (
	MsgUp    = "up"    // guest to host: user space is reached (at each boot)
	MsgReady = "ready" // guest to host: everything is mounted, the first command starts
	MsgRun   = "run"   // guest to host: "run PACKAGE", its test binary starts
	MsgExit  = "exit"  // guest to host: "exit CODE", all commands are done and /results is synced
	MsgError = "error" // guest to host: "error TEXT", the guest could not be set up
	MsgDump  = "dump"  // host to guest: time is up, show what hangs
)

// Tags of the 9p shares.
const (
	TagRoot    = "root"    // the machine's root file system, read-only
	TagResults = "results" // the output directory, writable, at ResultsDir
)

// ResultsDir is where the writable share is mounted in the guest.
const ResultsDir = "/results"

// ConfigPath is the path of the JSON-encoded Config in the initramfs.
const ConfigPath = "/config.json"

// Config is what the host tells the guest to do.
type Config struct {
	Hostname string
	// Release is the kernel's release, as uname -r tells it.
	Release string
	// ModulesDir is the directory on the host that becomes /lib/modules/Release.
	ModulesDir string
	// Insert lists modules in the initramfs, in the order of loading.
	Insert []string
	// Show lists host paths under directories that the guest covers with a
	// tmpfs (/tmp, /run), which are to be seen in the guest all the same.
	Show []string
	// Systemd has systemd be process 1, on a root whose changes are kept on the first disk.
	Systemd bool
	// Commands are run one after the other, whatever their exit codes.
	Commands []Command
}

// Command is one command to run.
type Command struct {
	Args []string
	Dir  string
	Env  []string // complete: nothing is inherited
	// Package is the import path if the command is a Go test binary. After
	// it, the line is printed that go test prints.
	Package string
}

// IsInit tells whether this process is the guest's process 1.
func IsInit() bool {
	if os.Getpid() != 1 {
		return false
	}
	// In a container the harness itself may be process 1.
	_, err := os.Stat(ConfigPath)
	return err == nil && os.Args[0] == "/init"
}
