// Command bench measures holdfast against the servers that it can be compared
// with, in ways that can embarrass it.
//
//	go run ./hack/bench native     the engine on a file against qemu-img bench; no driver needed
//	go run ./hack/bench gate       what the check for standby costs on the fast path; no driver needed
//	go run ./hack/bench procs      what GOMAXPROCS does to busy and to idle queues; no driver needed
//	go run ./hack/bench vm         devices in one boot of the newest kernel: loop, kublk, qemu-nbd, holdfast
//
// native and vm take -quick. Tables go to standard output, and with the raw results to
// build/bench/native and build/bench/vm.
//
// # What the figures say
//
// Native figures are of this machine's disk and memory, and absolute.
//
// The VM's are a comparison of servers in one boot. Where the processor is
// emulated, time in the guest is made to be a count of instructions (QEMU's
// icount): what else the machine does then has no influence, a second run shows
// the same within a few per cent, and a rate says how long the way of a request
// is, fio's and the kernel's part included. Two processors' instructions go on
// one count, so nothing is gained by working at the same time. -clock wall
// measures by the host's clock instead; on KVM that is always so.
//
// Natively, and by the host's clock, figures need company: a round is one run of
// each side, one after the other, and a ratio is the median of the rounds'
// ratios, so that what else the machine does falls on both.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: bench native|gate|procs|vm [flags]")
	}
	switch args[0] {
	case "native":
		return native(ctx, args[1:])
	case "vm":
		return vm(ctx, args[1:])
	case "gate":
		return gate(args[1:])
	case "procs":
		return procs(args[1:])
	case "engine": // one run of our side of native, in a process of its own
		return engineMain(args[1:])
	case "fill": // the same on an empty image
		return fillMain(args[1:])
	case "guest": // vm's part in the guest
		return guestMain(ctx, args[1:])
	case "serve": // a server of ours in the guest, for profiles
		return serveMain(ctx, args[1:])
	}
	return fmt.Errorf("%q: want native, gate, procs or vm", args[0])
}
