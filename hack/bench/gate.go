package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/standby"
)

// gate measures what the check for standby costs: the engine without the check, with it
// and the key off, and with the key on and a lease, so that standby is armed. Rounds are
// short and take turns in one process, on one image; a ratio is the median of the rounds'
// ratios, by the processor's time, which knows least of what else the machine does.
func gate(args []string) (err error) {
	f := flag.NewFlagSet("gate", flag.ContinueOnError)
	dir := f.String("dir", "/dev/shm", "`directory` for the image")
	rounds := f.Int("rounds", 41, "`number` of rounds of each")
	count := f.Int("count", 100000, "`number` of requests in a round")
	if err := f.Parse(args); err != nil {
		return flag.ErrHelp
	}
	temp, err := os.MkdirTemp(*dir, "holdfast-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	image := filepath.Join(temp, "image.hds")
	if err := makeImage(image, 256*mib); err != nil {
		return err
	}
	runtime.LockOSThread()
	stack, err := stack.Open([]ploop.ImageRef{{Path: image}}, stack.Options{})
	if err != nil {
		return err
	}
	defer stack.Close()
	e, err := newEngine(stack, 4096, 32)
	if err != nil {
		return err
	}
	defer e.close()

	var word atomic.Uint32
	key := standby.NewSwitch(&word)
	turn := func(on uint32) { word.Store(on); key.Turned() }
	device := standby.NewDevice(key, standby.Options{})
	if err := device.Attach("bench"); err != nil {
		return err
	}
	sides := []struct {
		name string
		set  func()
	}{
		{"absent", func() { e.gate = nil }},
		{"off", func() { e.gate = device.Gate() }},
		{"on", func() { e.gate = device.Gate(); turn(1) }},
	}
	order := []int{0, 1, 2}
	for _, write := range []bool{false, true} {
		p := pattern{Write: write, Block: 4096, Step: 4096 * 1237, Depth: 32, Count: *count}
		times := make([][]float64, len(sides))
		for round := range *rounds + 1 {
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			for _, i := range order {
				sides[i].set()
				before := threadTime()
				if _, err := e.run(&p); err != nil {
					return err
				}
				took := threadTime() - before
				turn(0)
				if round > 0 { // the first one warms up
					times[i] = append(times[i], took.Seconds())
				}
			}
		}
		what := "read"
		if write {
			what = "write"
		}
		fmt.Printf("4k %s, depth 32, %d rounds of %d requests: ", what, *rounds, *count)
		for i, s := range sides {
			fmt.Printf("%s %.3f us", s.name, 1e6*median(times[i])/float64(*count))
			if i > 0 {
				r := make([]float64, len(times[i]))
				for k := range r {
					r[k] = times[i][k] / times[0][k]
				}
				fmt.Printf(" (%.4f of absent, %.4f..%.4f)", median(r), slices.Min(r), slices.Max(r))
			}
			if i < len(sides)-1 {
				fmt.Print(", ")
			}
		}
		fmt.Println()
	}
	return nil
}

// threadTime is the calling thread's processor time.
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err) // the clock is as old as threads
	}
	return time.Duration(ts.Nano())
}
