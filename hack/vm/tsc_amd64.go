package main

import (
	"slices"
	"time"
)

// readTSC reads the processor's time-stamp counter.
func readTSC() uint64

// tscKHz is the rate of this machine's time-stamp counter, which is that of an emulated guest as well. A guest that
// measures it itself while it waits for a busy host can be wrong, once by a factor of ten, and has a clock after
// that which makes every time-out too short. The median of some measurements isn't.
func tscKHz() int64 {
	var rates []int64
	for range 9 {
		began, from := time.Now(), readTSC()
		time.Sleep(5 * time.Millisecond)
		to, took := readTSC(), time.Since(began)
		rates = append(rates, int64(float64(to-from)/took.Seconds()/1e3))
	}
	slices.Sort(rates)
	return rates[len(rates)/2]
}
