package main

import (
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/rs/zerolog"
)

func TestTuneRuntime(t *testing.T) {
	procs, threads := runtime.GOMAXPROCS(0), debug.SetMaxThreads(10000)
	defer func() { runtime.GOMAXPROCS(procs); debug.SetMaxThreads(threads) }()
	t.Setenv("GOMAXPROCS", "3")
	tuneRuntime(zerolog.Nop())
	if n := runtime.GOMAXPROCS(0); n != procs {
		t.Errorf("GOMAXPROCS of the environment doesn't stand: %d", n)
	}
	t.Setenv("GOMAXPROCS", "")
	runtime.GOMAXPROCS(2)
	tuneRuntime(zerolog.Nop())
	if n := runtime.GOMAXPROCS(0); n != 8 {
		t.Errorf("GOMAXPROCS %d on 2 processors, want 8", n)
	}
	if n := debug.SetMaxThreads(10000); n != mostThreads {
		t.Errorf("at most %d threads, want %d", n, mostThreads)
	}
	for cpus, want := range map[int]int{1: 4, 32: 128, 64: 128, 128: 128, 256: 256} {
		if n := procsFor(cpus); n != want {
			t.Errorf("%d processors: %d, want %d", cpus, n, want)
		}
	}
}
