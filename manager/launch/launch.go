// Package launch starts the processes that serve one device each, and keeps them running. It knows
// nothing of what they do: a process is a program file, arguments and a NAME behind them.
//
// There are two launchers: [Systemd] leaves the work to systemd, as units of the template
// holdfast-device@.service; [Fork] does it itself, for hosts with another init and in containers.
// [Detect] says which one is right.
//
// # What a process's end says
//
//	0                  it is over: it isn't started again
//	75 (EX_TEMPFAIL)   it has left what it served in order for its successor, which is started at once
//	other, or a signal it is started again
//
// Fork waits before it starts one that failed: 20 ms, twice as long each time up to 2 s, and 20 ms
// again after one that ran for 10 s. systemd always waits 20 ms (RestartSteps= counts restarts of
// the unit's whole life, upgrades too, and would have a device that was upgraded often wait longer
// for its server).
//
// # Processes outlive their launcher
//
// A launcher that is closed or killed leaves the processes alone. With Fork they have sessions of
// their own, and nothing that leads to the launcher; the next one is told of them by [Fork.Adopt].
// They are not its children then, so it can't wait for them. Linux 6.15 and later tell how a
// process ended to whoever has a pidfd of it (PIDFD_GET_INFO), once it was reaped by its parent;
// before, it is left to [ForkConfig.Wanted] whether it is to be started again.
//
// # Processes that were killed and can't end
//
// A thread in storage that doesn't answer can't be interrupted, and a process doesn't end before
// its last thread; until then it keeps its descriptors and locks. Linux tells nobody of that: as
// long as the thread is there, the parent gets no SIGCHLD, wait4 and waitid find nothing, and no
// pidfd becomes readable, neither the process's nor (PIDFD_THREAD) that of its first thread, though
// that one is a zombie already (hack/faultfs, Linux 6.18). Only /proc/PID/stat shows it, with the
// status that the process ends with. So Fork reads it every two seconds, and starts a successor
// once the process was seen so twice: which is to wait for whatever the dying one still holds. The
// dying one is still waited for, and its end then means nothing more. systemd, which isn't told
// either, goes on taking the unit for one that runs, until the watchdog bites and its own time-outs
// have passed.
//
// A signal that can be handled, as Stop's, is given to the process's first thread, and waits for as
// long as that one hangs, even if there are others. A process that is to end when it is told so
// keeps its first thread out of storage (in Go: runtime.LockOSThread in an init function, for
// main).
package launch

import (
	"context"
	"errors"
	"fmt"

	"holdfast/api"
)

// Again is the exit code of a process that wants its successor at once.
const Again = 75

// ErrClosed is returned by calls on a launcher that was closed.
var ErrClosed = errors.New("the launcher is closed")

// A Launcher starts processes by their names and keeps them running. Its methods may be called at
// any time from anywhere; what one process does holds up no call for another one.
type Launcher interface {
	// Start has NAME's process run: that of SetBinary's program, or the default one. It is
	// nothing if there is one. It returns when the process was started, or with
	// systemd was to be started for two seconds and waits for something, and not when it answers.
	//
	// A process that is about to end may still be there, so who waits for it to answer calls Start
	// again as long as it doesn't.
	Start(ctx context.Context, name string) error
	// Stop has NAME's process end (SIGTERM) and not be started again. It doesn't wait for the end.
	Stop(ctx context.Context, name string) error
	// Enable has NAME's process be started at boot or not. It is nothing with Fork: the caller
	// starts what it knows of.
	Enable(ctx context.Context, name string, on bool) error
	// Mounts says what files NAME's process uses, by absolute paths; they replace those of the call
	// before. systemd then mounts their file systems before it and keeps them as long. It is
	// nothing with Fork.
	Mounts(ctx context.Context, name string, paths []string) error
	// SetBinary has the next start of NAME's process be that of another program, by its absolute
	// path; "" is the default one. Until the next boot, or with Fork until Close.
	SetBinary(ctx context.Context, name, path string) error
	// Forget removes what is kept of a NAME that is no more: settings, logs. A process that is
	// about to end is let do so, and is not started again.
	Forget(ctx context.Context, name string) error
	// Restarts counts how often NAME's process has ended, in order or not, and was to be started again
	// without Start, or could not be started so. With systemd it begins anew with a Start after
	// a Stop.
	Restarts(ctx context.Context, name string) (int, error)
	// Log says where to read what NAME's processes have written, for a message.
	Log(name string) string
	// List are the names, in order, that have a process, or would have if it hadn't just ended
	// or failed to start.
	List(ctx context.Context) ([]string, error)
	// Close ends the launcher and no process. All that is called afterwards fails with ErrClosed.
	Close() error
}

// checkName keeps names out that would be a path or a unit of somebody else.
func checkName(name string) error {
	if !api.IsName(name) {
		return fmt.Errorf("%q is no name: letters, digits, and from the second on . _ -, at most 64", name)
	}
	return nil
}
