package main

import (
	"testing"
	"time"
)

// TestTSC: the rate is the one at which the counter goes on.
func TestTSC(t *testing.T) {
	khz := tscKHz()
	began, from := time.Now(), readTSC()
	time.Sleep(50 * time.Millisecond)
	ticks, took := readTSC()-from, time.Since(began)
	if ratio := float64(ticks) / (took.Seconds() * 1e3 * float64(khz)); ratio < 0.9 || ratio > 1.1 {
		t.Errorf("%d kHz, and %d ticks in %v", khz, ticks, took)
	}
}
