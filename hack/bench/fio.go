package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// load is one combination of what fio is to do.
type load struct {
	Write  bool `json:"write"`
	Block  int  `json:"block"` // bytes
	Random bool `json:"random"`
	Depth  int  `json:"depth"`
	Jobs   int  `json:"jobs"`
}

// quick says whether the bars speak of it: the quick set.
func (l load) quick() bool { return l.Block == 4<<10 && l.Random && l.Jobs == 1 }

func (l load) rw() string {
	s := "read"
	if l.Write {
		s = "write"
	}
	if l.Random {
		s = "rand" + s
	}
	return s
}

func (l load) String() string {
	return fmt.Sprintf("%dk %s d%d j%d", l.Block>>10, l.rw(), l.Depth, l.Jobs)
}

func loads(quick bool) []load {
	var out []load
	for _, block := range []int{4 << 10, 64 << 10} {
		for _, random := range []bool{true, false} {
			for _, jobs := range []int{1, 2} {
				for _, write := range []bool{false, true} {
					for _, depth := range []int{1, 32} {
						l := load{write, block, random, depth, jobs}
						if !quick || l.quick() {
							out = append(out, l)
						}
					}
				}
			}
		}
	}
	return out
}

// vmRun is one run of fio on one device, as it is kept.
type vmRun struct {
	Server   string  `json:"server"`
	Load     string  `json:"load"`
	Round    int     `json:"round"`
	IOs      int     `json:"ios"`
	IOPS     float64 `json:"iops"`
	Mean     float64 `json:"lat_mean_us"`
	P50      float64 `json:"lat_p50_us"`
	CPU      float64 `json:"server_cpu_us_per_io"`
	Kernel   float64 `json:"kernel_threads_cpu_us_per_io"`
	Busy     float64 `json:"guest_cpu_us_per_io"`
	Switches float64 `json:"server_switches_per_io"`
	Raw      string  `json:"raw"` // fio's own output
}

type fioSide struct {
	IOPS     float64 `json:"iops"`
	TotalIOs int     `json:"total_ios"`
	Latency  struct {
		Mean float64 `json:"mean"`
	} `json:"lat_ns"`
	Completion struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

type fioOutput struct {
	Jobs []struct {
		Error int     `json:"error"`
		Read  fioSide `json:"read"`
		Write fioSide `json:"write"`
	} `json:"jobs"`
}

// runFio runs one load on one device and keeps fio's output in dir.
func runFio(ctx context.Context, s *server, l load, round int, runtime time.Duration, dir string) (*vmRun, error) {
	args := []string{
		"--name=bench", "--filename=" + s.path, "--direct=1", "--ioengine=io_uring", "--fixedbufs", "--registerfiles",
		"--thread", "--group_reporting", "--time_based", fmt.Sprintf("--runtime=%dms", runtime.Milliseconds()),
		"--rw=" + l.rw(), "--bs=" + strconv.Itoa(l.Block), "--iodepth=" + strconv.Itoa(l.Depth), "--numjobs=" + strconv.Itoa(l.Jobs),
		"--norandommap", "--randseed=" + strconv.Itoa(round+1), "--output-format=json",
	}
	if l.Jobs > 1 {
		// Each job has its part of the device, so that two sequential jobs
		// don't share every block.
		args = append(args, fmt.Sprintf("--size=%d%%", 100/l.Jobs), fmt.Sprintf("--offset_increment=%d%%", 100/l.Jobs))
	}
	before, err := readUsage(s)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "fio", args...)
	var words bytes.Buffer
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("fio on %s: %w\n%s", s.path, err, words.String())
	}
	after, err := readUsage(s)
	if err != nil {
		return nil, err
	}
	u := after.since(before)
	r := &vmRun{Server: s.name, Load: l.String(), Round: round}
	r.Raw = strings.ReplaceAll(fmt.Sprintf("fio-%s-%s-%d.json", s.name, l, round), " ", "-")
	if err := os.WriteFile(filepath.Join(dir, r.Raw), out, 0o644); err != nil {
		return nil, err
	}
	if i := bytes.IndexByte(out, '{'); i > 0 {
		out = out[i:] // notes before
	}
	var f fioOutput
	if err := json.Unmarshal(out, &f); err != nil {
		return nil, fmt.Errorf("fio's output %s: %w", r.Raw, err)
	}
	if len(f.Jobs) != 1 || f.Jobs[0].Error != 0 {
		return nil, fmt.Errorf("fio on %s reports an error: see %s", s.path, r.Raw)
	}
	side := f.Jobs[0].Read
	if l.Write {
		side = f.Jobs[0].Write
	}
	if side.TotalIOs == 0 {
		return nil, fmt.Errorf("fio on %s did nothing: see %s", s.path, r.Raw)
	}
	n := float64(side.TotalIOs)
	r.IOs, r.IOPS = side.TotalIOs, side.IOPS
	r.Mean, r.P50 = side.Latency.Mean/1e3, side.Completion.Percentile["50.000000"]/1e3
	r.CPU, r.Kernel, r.Busy, r.Switches = 1e6*u.server/n, 1e6*u.kernel/n, 1e6*u.busy/n, float64(u.switches)/n
	return r, nil
}
