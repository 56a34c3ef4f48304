package process

import (
	"os"
	"runtime"
	"runtime/debug"

	"holdfast/internal/thp"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

const (
	// procsPerCPU is how many of Go's processors (GOMAXPROCS) a server has for each of the
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
	// mostProcs bounds that: a device has 4 queues at most unless told otherwise.
	mostProcs = 8
	// startProcs is how many there are until the device is served. What a server allocates until
	// then it does once, and each of Go's processors keeps pages and a thread of its own for it: an
	// idle server takes
	// 1.5 MiB with one and 2.5 with 8.
	startProcs = "1"
	// mostThreads is where Go ends the process: what hangs in storage keeps a thread, of which
	// package device bounds the number.
	mostThreads = 1 << 14
	// gcPercent trades time for memory: a server allocates next to nothing while it serves.
	gcPercent = 25
)

// tune sets what a server needs of Go's runtime. The environment's values stand, but for
// GOMAXPROCS, see served.
func tune() {
	debug.SetMaxThreads(mostThreads)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// served gives Go the processors that a device needs: for each queue that is busy there are others
// that are to wake up at once.
func served(queues int) {
	runtime.GOMAXPROCS(min(procsPerCPU*runtime.NumCPU(), 2+2*queues, mostProcs))
}

// lean has this process start again without transparent huge pages (see package thp) and with one
// of Go's processors, unless whoever started it has seen to both.
func lean(log zerolog.Logger) {
	changed, err := thp.Disable()
	if changed || err == nil && os.Getenv("GOMAXPROCS") != startProcs {
		os.Setenv("GOMAXPROCS", startProcs)
		err = unix.Exec(program(), os.Args, os.Environ())
	}
	if err != nil {
		log.Warn().Err(err).Msg("this server could not be started anew: it takes more memory than it needs")
	}
}

// program is the path of this process's program, by which the kernel names the process. Who has replaced the file
// meanwhile gets the program that he has begun with, and a name that says nothing.
func program() string {
	const self = "/proc/self/exe"
	path, err := os.Readlink(self)
	if err != nil {
		return self
	}
	mine, err := os.Stat(self)
	there, err2 := os.Stat(path)
	if err != nil || err2 != nil || !os.SameFile(mine, there) {
		return self
	}
	return path
}
