// Holdfast-serve serves one device. The manager, holdfast daemon, starts it, or systemd does as
// holdfast-device@NAME.service; it isn't meant to be started by hand.
//
//	holdfast-serve [--run-dir DIR] [--state-dir DIR] [--stop-timeout TIME] [--log-level LEVEL] NAME
//
// Exit codes: 0 the device is over, or nobody wants it; 75 it was left in order to the next
// server, which is to start at once; anything else: start it again.
package main

import (
	"os"
	"runtime"

	"holdfast/server/process"
)

// The first thread of the process takes its signals. It must not be one that waits for storage, or
// a server that is told to stop would not hear it: main's goroutine keeps it.
func init() { runtime.LockOSThread() }

func main() { os.Exit(process.Main(os.Args[1:])) }
