package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// vm builds what the guest needs, boots it and lets guestMain do the rest.
func vm(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("vm", flag.ContinueOnError)
	out := f.String("out", "build/bench/vm", "`directory` for the results")
	quick := f.Bool("quick", false, "only 4k random, one job")
	rounds := f.Int("rounds", 3, "`number` of rounds of the quick set; the rest has one")
	runTime := f.Duration("run", 300*time.Millisecond, "`time` of one run, by the guest's clock")
	only := f.String("only", "", "only the load of this `name`, such as '4k randread d32 j1'")
	servers := f.String("servers", strings.Join(tableServers, ","), "comma-separated `names` of the servers to measure; there are "+strings.Join(extraServers, ", ")+" as well")
	clock := f.String("clock", "instructions", "what an emulated guest's time is: instructions, or wall")
	profile := f.Bool("profile", false, "keep CPU profiles of holdfast, which cost some speed")
	kernel := f.String("kernel", "newest", "kernel's `name`, as for hack/vm")
	timeout := f.Duration("timeout", 30*time.Minute, "give up after this `time`")
	if err := f.Parse(args); err != nil {
		return flag.ErrHelp
	}
	if *clock != "instructions" && *clock != "wall" {
		return fmt.Errorf("-clock %s: want instructions or wall", *clock)
	}
	dir, err := filepath.Abs(*out)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	kublk := ""
	if strings.Contains(*servers, kublkName) {
		if kublk, err = findKublk(); err != nil {
			return fmt.Errorf("kublk: %w", err)
		}
	}
	// The guest sees this machine's files, but not its /tmp.
	self := filepath.Join(dir, "bench")
	if err := goTool(ctx, "build", "-o", dir+"/", "holdfast/hack/bench", "holdfast/ublk/examples/"+fileName, "holdfast/ublk/examples/"+nullName); err != nil {
		return err
	}
	guest := []string{"run", "holdfast/hack/vm", fmt.Sprintf("-icount=%t", *clock == "instructions"), "-kernel", *kernel, "-mem", "4G", "-timeout", timeout.String(), "-out", dir, "-files", dir}
	if kublk != "" {
		guest = append(guest, "-files", kublk)
	}
	guest = append(guest, "--", self, "guest", "-clock", *clock, "-kublk", kublk, "-rounds", fmt.Sprint(*rounds), "-run", runTime.String(), "-only", *only, "-servers", *servers, fmt.Sprintf("-quick=%t", *quick))
	if *profile {
		guest = append(guest, "-profile", "/results/cpu")
	}
	if err := goTool(ctx, guest...); err != nil {
		return err
	}
	fmt.Printf("raw results: %s\n", dir)
	return nil
}

// goTool runs the go command without CGO: what it builds here must be static.
func goTool(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// An interrupt lets the harness end its guest.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w", strings.Join(args[:2], " "), err)
	}
	return nil
}
