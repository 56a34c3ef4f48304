// Command null serves a block device that keeps nothing: reads give zeroes, all else is done at
// once. It shows the least that a handler can be, and what is left to measure is the way to it.
//
//	go run holdfast/ublk/examples/null -size 1073741824 -queues 2
//
// Its output is what package holdfast/ublk/examples/internal/server says.
package main

import (
	"flag"

	"golang.org/x/sys/unix"

	"holdfast/ublk"
	"holdfast/ublk/examples/internal/server"
)

func main() {
	size := flag.Int64("size", 1<<30, "`bytes`, a multiple of 512")
	stale := flag.Bool("stale", false, "leave the memory of reads as it is: measures the bare way, and shows users what was in that memory before")
	server.Main("", func(cfg *ublk.Config) (server.Target, error) {
		cfg.Size = *size
		cfg.DiscardGranularity, cfg.WriteZeroes = 4096, true
		return server.Target{Handler: null{*stale}}, nil
	})
}

// null completes every request where it comes.
type null struct{ stale bool }

var _ ublk.Handler = null{}

// Begin is on the queue's thread.
func (n null) Begin(r *ublk.Request) {
	var errno unix.Errno
	if r.Op() == ublk.OpRead && !n.stale {
		errno = r.ZeroFill()
	}
	r.CompleteHere(errno)
}

// Transferred is not called: Begin starts no transfer.
func (null) Transferred(*ublk.Request, unix.Errno) {}
