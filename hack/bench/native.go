package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// nativeRun is one run of one side, as it is kept.
type nativeRun struct {
	Place   string  `json:"place"`
	Case    string  `json:"case"`
	Side    string  `json:"side"` // holdfast or qemu-img
	Round   int     `json:"round"`
	Count   int     `json:"count"`
	Seconds float64 `json:"seconds"`     // as the side itself tells
	CPU     float64 `json:"cpu_seconds"` // user and system, of the whole process
	Enters  int     `json:"enters,omitempty"`
	Mallocs uint64  `json:"mallocs,omitempty"`
}

func (r *nativeRun) rate() float64     { return float64(r.Count) / r.Seconds }
func (r *nativeRun) cpuPerIO() float64 { return r.CPU / float64(r.Count) }

type nativeCase struct {
	name string
	p    pattern
}

// nativeCases are the patterns. qemu-img bench knows strides only; the "random"
// ones use one that is odd in blocks and larger than any read-ahead, so that
// every block is met once before any is met again.
func nativeCases(quick bool) []nativeCase {
	var out []nativeCase
	for _, write := range []bool{false, true} {
		for _, block := range []int{4 << 10, 64 << 10} {
			for _, random := range []bool{true, false} {
				for _, depth := range []int{1, 32} {
					if quick && (block != 4<<10 || !random) {
						continue
					}
					step, how, what := int64(block), "sequential", "read"
					if random {
						step, how = int64(block)*1237, "stride"
					}
					if write {
						what = "write"
					}
					out = append(out, nativeCase{
						fmt.Sprintf("%dk %s %s depth %d", block>>10, how, what, depth),
						pattern{Write: write, Block: block, Step: step, Depth: depth},
					})
				}
			}
		}
	}
	return out
}

type nativeOptions struct {
	dirs   string
	out    string
	size   int64
	rounds int
	run    time.Duration
	quick  bool
}

func native(ctx context.Context, args []string) error {
	var o nativeOptions
	f := flag.NewFlagSet("native", flag.ContinueOnError)
	f.StringVar(&o.dirs, "dirs", "build/bench/native,/dev/shm", "comma-separated `directories` for the image, each measured")
	f.StringVar(&o.out, "out", "build/bench/native", "`directory` for the results")
	f.Int64Var(&o.size, "size", 1024, "the image's `MiB`")
	f.IntVar(&o.rounds, "rounds", 5, "`number` of rounds of each case")
	f.DurationVar(&o.run, "run", time.Second, "`time` that one run takes, about")
	f.BoolVar(&o.quick, "quick", false, "only 4k and stride, in three rounds")
	if err := f.Parse(args); err != nil {
		return flag.ErrHelp
	}
	if o.quick {
		o.rounds = min(o.rounds, 3)
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	raw, err := os.Create(filepath.Join(o.out, "runs.jsonl"))
	if err != nil {
		return err
	}
	defer raw.Close()
	var text strings.Builder
	for _, dir := range strings.Split(o.dirs, ",") {
		table, err := nativePlace(ctx, &o, dir, json.NewEncoder(raw))
		if err != nil {
			return fmt.Errorf("in %s: %w", dir, err)
		}
		text.WriteString(table)
	}
	fmt.Printf("raw results: %s\n", raw.Name())
	return os.WriteFile(filepath.Join(o.out, "table.txt"), []byte(text.String()), 0o644)
}

// nativePlace measures all cases on an image in dir and returns the table,
// which it has printed as it came.
func nativePlace(ctx context.Context, o *nativeOptions, dir string, raw *json.Encoder) (string, error) {
	temp, err := os.MkdirTemp(dir, "holdfast-bench-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	image := filepath.Join(temp, "image.hds")
	if err := makeImage(image, o.size*mib); err != nil {
		return "", err
	}
	var text strings.Builder
	say := func(format string, args ...any) {
		line := fmt.Sprintf(format, args...)
		fmt.Print(line)
		text.WriteString(line)
	}
	say("native: engine against qemu-img bench -f parallels -i io_uring -t none; image in %s\n", dir)
	say("%-28s %10s %10s %7s %15s | %9s %9s %7s | %s\n", "", "holdfast", "qemu-img", "ratio", "(min..max)", "cpu us/IO", "qemu-img", "ratio", "enters/IO mallocs")
	for _, c := range append(nativeCases(o.quick), fillCases(o.quick)...) {
		// A run of theirs decides how many requests fill the time.
		c.p.Count = 4000
		image := image
		if c.p.Fill {
			image, c.p.Count = filepath.Join(temp, "empty.hds"), 1000
		} else {
			first, err := theirs(ctx, image, c.p)
			if err != nil {
				return "", err
			}
			c.p.Count = max(1000, int(first.rate()*o.run.Seconds()))
		}
		var us, them []*nativeRun
		for round := range o.rounds {
			for _, side := range []struct {
				run  func(context.Context, string, pattern) (*nativeRun, error)
				runs *[]*nativeRun
			}{{ours, &us}, {theirs, &them}} {
				if c.p.Fill {
					if err := createImage(image, int64(c.p.Count)*c.p.Step); err != nil {
						return "", err
					}
				}
				r, err := side.run(ctx, image, c.p)
				if err != nil {
					return "", err
				}
				r.Place, r.Case, r.Round = dir, c.name, round
				if err := raw.Encode(r); err != nil {
					return "", err
				}
				*side.runs = append(*side.runs, r)
			}
		}
		rates := ratios(us, them, (*nativeRun).rate)
		cpu := ratios(us, them, (*nativeRun).cpuPerIO)
		last := us[len(us)-1]
		say("%-28s %10.0f %10.0f %7.2f %15s | %9.2f %9.2f %7.2f | %.3f %d\n", c.name,
			median(each(us, (*nativeRun).rate)), median(each(them, (*nativeRun).rate)),
			median(rates), fmt.Sprintf("(%.2f..%.2f)", slices.Min(rates), slices.Max(rates)),
			1e6*median(each(us, (*nativeRun).cpuPerIO)), 1e6*median(each(them, (*nativeRun).cpuPerIO)), median(cpu),
			float64(last.Enters)/float64(last.Count), last.Mallocs)
	}
	return text.String(), nil
}

func ratios(us, them []*nativeRun, f func(*nativeRun) float64) []float64 {
	out := make([]float64, len(us))
	for i := range us {
		out[i] = f(us[i]) / f(them[i])
	}
	return out
}

func each(runs []*nativeRun, f func(*nativeRun) float64) []float64 {
	out := make([]float64, len(runs))
	for i := range runs {
		out[i] = f(runs[i])
	}
	return out
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	switch {
	case n == 0:
		return 0
	case n%2 == 1:
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}

// ours runs the engine in a process of its own, this program's.
func ours(ctx context.Context, image string, p pattern) (*nativeRun, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{"engine", "-block", strconv.Itoa(p.Block), "-step", strconv.FormatInt(p.Step, 10), "-depth", strconv.Itoa(p.Depth), "-count", strconv.Itoa(p.Count)}
	switch {
	case p.Fill:
		args[0] = "fill"
	case p.Write:
		args = append(args, "-write")
	}
	out, cpu, err := measured(exec.CommandContext(ctx, self, append(args, image)...))
	if err != nil {
		return nil, err
	}
	var r engineResult
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, err
	}
	if !r.Direct && !inMemory(image) {
		return nil, fmt.Errorf("%s: the file system does not take O_DIRECT, which the comparison is about", image)
	}
	return &nativeRun{Side: "holdfast", Count: p.Count, Seconds: r.Seconds, CPU: cpu, Enters: r.Enters, Mallocs: r.Mallocs}, nil
}

// inMemory says that a file is on tmpfs, where O_DIRECT means nothing, to neither side.
func inMemory(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.TMPFS_MAGIC
}

var completed = regexp.MustCompile(`Run completed in ([0-9.]+) seconds`)

func theirs(ctx context.Context, image string, p pattern) (*nativeRun, error) {
	args := []string{"bench", "-f", "parallels", "-i", "io_uring", "-t", "none", "-s", strconv.Itoa(p.Block), "-S", strconv.FormatInt(p.Step, 10), "-d", strconv.Itoa(p.Depth), "-c", strconv.Itoa(p.Count)}
	if p.Write {
		args = append(args, "-w")
	}
	out, cpu, err := measured(exec.CommandContext(ctx, "qemu-img", append(args, image)...))
	if err != nil {
		return nil, err
	}
	m := completed.FindSubmatch(out)
	if m == nil {
		return nil, fmt.Errorf("qemu-img bench told no time: %s", out)
	}
	seconds, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil || seconds == 0 {
		return nil, fmt.Errorf("qemu-img bench told a time of %s s", m[1])
	}
	return &nativeRun{Side: "qemu-img", Count: p.Count, Seconds: seconds, CPU: cpu}, nil
}

// measured runs a command and returns its output and its processor time in
// seconds, that of the kernel's worker threads for its rings included.
func measured(c *exec.Cmd) (out []byte, cpu float64, err error) {
	c.Stderr = os.Stderr
	out, err = c.Output()
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", strings.Join(c.Args, " "), err)
	}
	return out, (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds(), nil
}
