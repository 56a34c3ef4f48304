package main

import (
	"os"
	"runtime"
	"runtime/debug"

	"github.com/rs/zerolog"
)

const (
	// procsPerCPU is how many of Go's processors (GOMAXPROCS) the daemon has for each of the
	// machine's. A queue's thread that is busy keeps one for turns of 10 ms: with as many busy
	// queues as there are, others wait that long, although the kernel would share out the
	// machine's processors more finely. On 2 processors, the 99th percentile of the time until
	// an idle queue wakes up was, in ms, in a VM whose clock counts instructions, and natively
	// (the median of 5 rounds); hack/bench/procs.go says how to measure it again:
	//
	//	GOMAXPROCS             2      4      8     one for each queue and 2 (19 to 26)
	//	VM      1 queue busy   3.8    0.3    0.2   11.0
	//	        2 queues      30.4    6.1    4.0   58.0
	//	        4 queues      23.9   22.5   13.8   10.7
	//	native  2 queues       8.0    6.8    0.8    0.9
	//	        4 queues      13.5    5.6    1.0    0.7
	//	        8 queues      19.1    7.0    1.7    2.1
	//
	// The rate at which the busy ones read was the same in the VM. More than four times as many
	// gain little or lose, and have a price: for collections of garbage all of Go's processors
	// stop, natively for 10 to 30 ms at worst with up to 8 of them, 24 to 58 ms with the last
	// column's, and 130 to 260 ms with 402.
	procsPerCPU = 4
	// mostProcs bounds that where there are many: as many queues are hardly busy at once.
	mostProcs = 128

	// mostThreads is where Go ends the process, instead of at 10,000: a daemon of thousands
	// of devices needs more. A queue is a thread, and what hangs in storage keeps one; package
	// device bounds those, at 4096 for all devices and some 8 more for each.
	mostThreads = 1 << 17
)

// tuneRuntime sets what the daemon needs of Go's runtime. The environment's GOMAXPROCS stands.
func tuneRuntime(log zerolog.Logger) {
	debug.SetMaxThreads(mostThreads)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(procsFor(runtime.GOMAXPROCS(0)))
	}
	log.Debug().Int("gomaxprocs", runtime.GOMAXPROCS(0)).Int("max_threads", mostThreads).Msg("runtime")
}

// procsFor is how many of Go's processors there are to be for so many of the machine's, or
// of the container's.
func procsFor(cpus int) int { return max(cpus, min(procsPerCPU*cpus, mostProcs)) }
