package api

import "time"

// A Snapshot is the host at one moment. Every view (list, show, the
// attribute tree, metrics) is drawn from it and from nothing else.
// It is taken without stopping I/O, so counters of one device may be some
// requests apart from each other.
type Snapshot struct {
	Daemon  DaemonInfo `json:"daemon"`
	Driver  DriverInfo `json:"driver"`
	Key     KeyInfo    `json:"standby_check"`
	Devices []Device   `json:"devices"` // by name
	// Problems are records that could not be read; they belong to no device.
	Problems []Problem `json:"problems"`
}

// DaemonInfo says who answers.
type DaemonInfo struct {
	Version  string    `json:"version"`
	API      int       `json:"api"` // 1
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	RunDir   string    `json:"run_dir"`
	StateDir string    `json:"state_dir"`
	// Stopping: a signal was received; no device is created any more.
	Stopping bool `json:"stopping"`
}

// DriverInfo says whether the kernel can serve devices.
type DriverInfo struct {
	Available bool `json:"available"`
	// Missing says what is in the way and what to do about it.
	Missing string `json:"missing,omitempty"`
}

// A Device is one device as its server, or the manager, sees it.
type Device struct {
	Status
	// Created is when it was created, by the clock.
	Created time.Time `json:"created"`
	// Persist: it is created again after a reboot, and after a stop of all servers.
	Persist bool `json:"persist"`
	// Users is who holds the device now.
	Users []User `json:"users"`
	// Server is the process that serves it; nil: who answers doesn't know.
	Server *ServerState `json:"server,omitempty"`
	// Problem is what is wrong, Advice what to do about it; empty if nothing.
	Problem string `json:"problem,omitempty"`
	Advice  string `json:"advice,omitempty"`
	// Events are the last few, oldest first.
	Events []Event `json:"events"`
}

// States of a device that its server adds to those of a live one.
const (
	StateCreating = "creating" // being created
	StateRemoving = "removing" // being removed
	StateLost     = "lost"     // its server died with it, or the machine did; not served
	// Its server died or left, and the next one is about to take it over: its
	// requests wait.
	StateRecovering = "recovering"
	// It can't be taken over now: its requests fail (the recover policy fail).
	StateUnrecovered = "unrecovered"
	// The same as recovering, and the driver doesn't know yet that the server is gone.
	StateUnreleased = "unreleased"
	StateWaiting    = "waiting" // persistent, and could not be created again yet
)

// Waits says that a device has no server now: it has its disk, and its figures are not known.
func (d *Device) Waits() bool { return Waits(d.State) }

// Waits says of a state that its device has no server now.
func Waits(state string) bool {
	return state == StateRecovering || state == StateUnrecovered || state == StateUnreleased
}

// A Problem is a record in the state directory that could not be used.
type Problem struct {
	File   string `json:"file"`
	Reason string `json:"reason"`
	Advice string `json:"advice"`

	Device string // the device's that it concerns, if known
}

// KeyInfo is the process-wide standby check.
type KeyInfo struct {
	On      bool         `json:"on"`
	Holders []string     `json:"holders"` // who holds it on
	Targets []TargetInfo `json:"targets"` // integrations that are looked for
	// Inconsistencies counts the check's own, by kind.
	Inconsistencies map[string]uint64 `json:"inconsistencies"`
}

// TargetInfo is an integration with a kind of target.
type TargetInfo struct {
	Kind    string   `json:"kind"`    // lio, scst or tgt
	Present bool     `json:"present"` // it runs
	Devices []string `json:"devices"` // those of ours that it exports
	Error   string   `json:"error,omitempty"`
}
