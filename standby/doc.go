// Package standby is the state machine that decides whether a device processes
// requests, holds them, or fails them. It does no I/O, runs no timer, and knows
// neither who sets its switches nor what a request is.
//
// # Two fuses
//
// The key, or standby check, is one for the host, like a static key of the kernel: on
// while anybody holds it. The integration with a target holds it while it runs. Who holds
// it is not known here: a Switch is given a word that says whether it is on, perhaps one
// in memory that all processes share. Every operation on a device reads the word anew, so
// a process agrees with the others at once; Switch.Turned, for a wake-up, brings gates in line
// where nothing else happens.
//
// STANDBY_EN belongs to a Device, and is set while any consumer holds a lease: the
// consumer's promise that it can live with requests that take long, and will
// see to it that the hold ends. While either is off nothing on the device is
// touched: errors pass, and nothing is held for standby.
//
// # STANDBY
//
// With both fuses on, an error out of the device's trigger set sets STANDBY
// (Device.Fault), and from then on the gate is closed. It ends by a resume
// (Device.Resume), after which what was held is served, or without one: by
// hand, or by a time-out, and then all that was held fails. What is held must be
// kept by the owner, who learns from Options.Changed what to do with it.
//
// A fuse that goes off in standby leaves the flag set, which is an inconsistency,
// and opens the gate: held requests are then processed, and get their errors.
//
// # Inconsistencies
//
// Wrong use of key, leases and flag (see Inconsistency) breaks nothing. Each is
// reported once when it comes about, and counted.
//
// # Concurrency
//
// The gate is one atomic word, for the start of every request. All else is under
// one lock of the Key, as nothing else happens often. Changed is called with that lock
// held, so that calls come in the order of the changes; it must neither block nor
// call back into this package, but for Gate's methods.
package standby
