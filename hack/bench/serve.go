package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/server/device"
	"holdfast/ublk"
)

// serveMain serves one device until SIGTERM, as holdfast-serve does, and tells at the
// end how much was allocated per request; it can write a CPU profile, which holdfast-serve
// has no business to.
func serveMain(ctx context.Context, args []string) (err error) {
	spec := api.Spec{}
	f := flag.NewFlagSet("serve", flag.ContinueOnError)
	f.StringVar(&spec.Name, "name", "bench", "the device's `name`")
	f.StringVar(&spec.DataPath, "data-path", "auto", "auto, copy or zero-copy")
	profile := f.String("profile", "", "write a CPU profile to this `prefix`-NAME.pprof")
	if err := f.Parse(args); err != nil {
		return flag.ErrHelp
	}
	for _, a := range f.Args() {
		ref, err := ploop.ParseImageRef(a)
		if err != nil {
			return err
		}
		spec.Images = append(spec.Images, ref)
	}
	if err := ublk.ProtectProcess(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	ctl, err := ublk.Open("")
	if err != nil {
		return err
	}
	defer ctl.Close()
	dev, err := device.Open(ctx, spec, device.Options{Control: ctl, Log: zerolog.New(os.Stderr)})
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		err = errors.Join(err, dev.Close(end, true))
	}()
	if *profile != "" {
		out, err := os.Create(*profile + "-" + spec.Name + ".pprof")
		if err != nil {
			return err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	fmt.Println(dev.Path(), dev.Status().DataPath)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	<-term
	runtime.ReadMemStats(&after)
	c := dev.Status().Counters
	n := c.Reads + c.Writes
	mallocs := after.Mallocs - before.Mallocs
	fmt.Printf("%d requests, %d by the slow way, %d allocations: %.6f each\n", n, c.Slow, mallocs, float64(mallocs)/float64(max(n, 1)))
	return nil
}
