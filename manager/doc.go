// Package manager is the process that serves a host: the front door of the API, with the names of
// all devices, the standby check, the attribute tree, figures, hooks, targets, and the events of
// all devices in one list. It serves no device and touches no storage: every device has a server of
// its own, a process that this one has started or found.
//
// # What it knows of a device
//
// Each device has a [peer]: its server as seen from here. The manager sees a lock that is held or
// not, a process that lives or dies, and an answer that came or did not; and it keeps the last
// report that came, with its time. Where there is no server, the record and the driver tell.
// Everything that is shown (list, tree, figures) is drawn from that.
//
// # Who waits for whom
//
// A server that is up is asked when somebody wants to know, and for [askTime] at most; then it is
// silent, and is asked in the background only, until it answers: so whoever reads waits for a
// server once. Nothing is shared between two peers but the things they report to (events,
// changes), which take what they are given and block nobody. Commands are handed on to the server,
// and wait as long as their client does.
//
// The manager may be killed at any time. What it must not forget is in the run directory: who holds
// the standby check (key.json), and, in the directory manager, of which events hooks and readers
// have been told (hooks.json, events.json). These are not in the run directory itself, as every
// server watches that for the key: each file written there would wake all of them.
//
// # Two rules for what is added here
//
// No image is opened here, and no path of an image is looked up: storage that hangs would have
// this process hang, and with it the control of all devices. And no program is executed directly
// whose path a user gave: see execute.
package manager
