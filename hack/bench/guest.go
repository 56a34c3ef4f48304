package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// guestOptions are those of the part of vm that runs in the guest.
type guestOptions struct {
	dir     string // of the files
	out     string
	kublk   string
	profile string
	size    int64
	rounds  int
	run     time.Duration
	quick   bool
	only    string
	servers string
	clock   string
}

func guestMain(ctx context.Context, args []string) error {
	var g guestOptions
	f := flag.NewFlagSet("guest", flag.ContinueOnError)
	f.StringVar(&g.dir, "dir", "/tmp", "`directory` for the files that are served")
	f.StringVar(&g.out, "out", "/results", "`directory` for the results")
	f.StringVar(&g.kublk, "kublk", "kublk", "the C server's `program`")
	f.StringVar(&g.profile, "profile", "", "holdfast's CPU profiles go to this `prefix`")
	f.StringVar(&g.clock, "clock", "wall", "what the guest's time is, if it is emulated, for the table's title")
	f.Int64Var(&g.size, "size", 256, "`MiB` of each device")
	f.IntVar(&g.rounds, "rounds", 3, "`number` of rounds of the quick set; the rest has one")
	f.DurationVar(&g.run, "run", 3*time.Second, "`time` of one run")
	f.BoolVar(&g.quick, "quick", false, "only the quick set")
	f.StringVar(&g.only, "only", "", "only loads of this `name`")
	f.StringVar(&g.servers, "servers", strings.Join(tableServers, ","), "comma-separated `names` of the servers to measure")
	if err := f.Parse(args); err != nil {
		return flag.ErrHelp
	}
	servers, err := startServers(&g)
	if err != nil {
		return err
	}
	defer stopServers(servers)
	if len(servers) == 0 {
		return fmt.Errorf("-servers %s: want some of %v", g.servers, allServers())
	}
	old, err := filepath.Glob(filepath.Join(g.out, "fio-*.json"))
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	raw, err := os.Create(filepath.Join(g.out, "runs.jsonl"))
	if err != nil {
		return err
	}
	defer raw.Close()
	enc := json.NewEncoder(raw)
	var runs []*vmRun
	for _, l := range loads(g.quick) {
		if g.only != "" && l.String() != g.only {
			continue
		}
		rounds := 1
		if l.quick() {
			rounds = g.rounds
		}
		for round := range rounds {
			for i := range servers {
				// Every round begins with another one.
				s := servers[(i+round)%len(servers)]
				r, err := runFio(ctx, s, l, round, g.run, g.out)
				if err != nil {
					return err
				}
				if err := enc.Encode(r); err != nil {
					return err
				}
				runs = append(runs, r)
			}
		}
		fmt.Fprintf(os.Stderr, "bench: %s: %s\n", time.Now().Format(time.TimeOnly), l)
	}
	title, err := vmTitle(&g)
	if err != nil {
		return err
	}
	text := title + vmTable(runs)
	fmt.Print(text)
	return os.WriteFile(filepath.Join(g.out, "table.txt"), []byte(text), 0o644)
}

// wanted are the servers to measure.
func (g *guestOptions) wanted() []string { return strings.Split(g.servers, ",") }

// vmTitle says what kind of figures follow.
func vmTitle(g *guestOptions) (string, error) {
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", err
	}
	kind := "a real processor"
	switch emulated := strings.Contains(string(cpu), "QEMU TCG"); {
	case emulated && g.clock == "instructions":
		kind = "an emulated processor whose clock counts instructions: figures are lengths of path, and processor times include waiting for the other processor's turn"
	case emulated:
		kind = "an emulated processor by the host's clock: ratios only, and only if the host had nothing else to do"
	}
	return fmt.Sprintf("Linux %s on %s; files on %s, %d MiB; runs of %v\n", unix.ByteSliceToString(uts.Release[:]), kind, g.dir, g.size, g.run), nil
}
