package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/ploop"
	"holdfast/ploop/stack"
)

// fillCases write to an empty image: each request gives a cluster of 1 MiB its place. qemu-img keeps
// the index in memory until the end, and loses the places if it is killed; ours is in the file when a
// request ends.
func fillCases(quick bool) []nativeCase {
	var out []nativeCase
	for _, block := range []int{4 << 10, 64 << 10, mib} {
		for _, depth := range []int{1, 32} {
			if quick && block != 4<<10 {
				continue
			}
			out = append(out, nativeCase{fmt.Sprintf("%dk to new clusters depth %d", block>>10, depth),
				pattern{Write: true, Fill: true, Block: block, Step: mib, Depth: depth}})
		}
	}
	return out
}

// fillMain is the subcommand: what package device's workers do, as many as there are requests in
// flight, on an image that is empty.
func fillMain(args []string) (err error) {
	var p pattern
	f := flag.NewFlagSet("fill", flag.ContinueOnError)
	f.IntVar(&p.Block, "block", 4096, "`bytes` a request")
	f.Int64Var(&p.Step, "step", mib, "`bytes` from one request to the next")
	f.IntVar(&p.Depth, "depth", 1, "`number` of requests in flight")
	f.IntVar(&p.Count, "count", 1000, "`number` of requests")
	if err := f.Parse(args); err != nil {
		return flag.ErrHelp
	}
	if f.NArg() != 1 {
		return errors.New("fill: want one image")
	}
	runtime.GOMAXPROCS(4) // as a server with one queue has
	s, err := stack.Open([]ploop.ImageRef{{Path: f.Arg(0)}}, stack.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var next atomic.Int64
	var group sync.WaitGroup
	errs := make([]error, p.Depth)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begin := time.Now()
	for k := range p.Depth {
		group.Go(func() {
			b := ploop.AlignedBuffer(p.Block)
			noise(b, int64(k))
			for i := next.Add(1) - 1; i < int64(p.Count) && errs[k] == nil; i = next.Add(1) - 1 {
				_, errs[k] = s.WriteAt(b, i*p.Step%s.Size())
			}
		})
	}
	group.Wait()
	r := engineResult{Seconds: time.Since(begin).Seconds(), Direct: s.Status().Images[0].Direct}
	runtime.ReadMemStats(&after)
	r.Mallocs = after.Mallocs - before.Mallocs
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}
