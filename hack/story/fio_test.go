package story

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// job is a run of fio that writes to a disk and verifies what it wrote: some of
// it as it goes, all of it at the end.
type job struct {
	t       *testing.T
	out     string
	started time.Time
	ended   atomic.Bool
	done    chan struct{}
	err     error
}

// work says which part of the disk a job writes, each block once.
type work struct {
	Offset, Size int64 // bytes
	Rate         int   // writes per second, so that it lasts
	Depth        int
}

const workBlock = 16 << 10

// startFio begins. A test that ends early ends the job.
func startFio(t *testing.T, disk string, w work) *job {
	t.Helper()
	j := &job{t: t, out: t.TempDir() + "/fio.json", done: make(chan struct{})}
	cmd := exec.Command("fio", "--name=story", "--filename="+disk, "--direct=1", "--ioengine=libaio",
		"--rw=randwrite", "--bs="+strconv.Itoa(workBlock), "--iodepth="+strconv.Itoa(w.Depth), "--rate_iops="+strconv.Itoa(w.Rate),
		"--offset="+strconv.FormatInt(w.Offset, 10), "--size="+strconv.FormatInt(w.Size, 10),
		"--fsync=64", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--verify_backlog_batch=16",
		"--randseed="+strconv.FormatInt(w.Offset+1, 10), "--allow_file_create=0",
		"--output-format=json", "--output="+j.out)
	// Verifying states are files in the working directory.
	cmd.Dir = t.TempDir()
	errs, err := os.Create(cmd.Dir + "/stderr")
	must(t, err)
	defer errs.Close()
	cmd.Stdout, cmd.Stderr = errs, errs
	must(t, cmd.Start())
	j.started = time.Now()
	go func() {
		j.err = cmd.Wait()
		j.ended.Store(true)
		close(j.done)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		if err := wait(time.Minute, func() error {
			if !j.ended.Load() {
				return fmt.Errorf("fio does not die: its requests do not come back")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			logTails(t, errs.Name(), j.out)
		}
	})
	return j
}

// result is what fio reports of a job.
type result struct {
	Error    int // errno
	Writes   int64
	Verified int64 // reads
	Duration time.Duration
	Slowest  time.Duration // completion of a write
}

// wait waits for the end of the job.
func (j *job) wait(timeout time.Duration) result {
	j.t.Helper()
	select {
	case <-j.done:
	case <-time.After(timeout):
		j.t.Fatalf("fio has not ended %v after its start", time.Since(j.started).Round(time.Second))
	}
	type half struct {
		TotalIOs int64 `json:"total_ios"`
		Latency  struct {
			Max float64 `json:"max"`
		} `json:"clat_ns"`
	}
	var report struct {
		Jobs []struct {
			Error int  `json:"error"`
			Read  half `json:"read"`
			Write half `json:"write"`
		} `json:"jobs"`
	}
	text, err := os.ReadFile(j.out)
	must(j.t, err)
	// Warnings may stand before the report.
	if i := indexJSON(text); i > 0 {
		text = text[i:]
	}
	if err := json.Unmarshal(text, &report); err != nil || len(report.Jobs) != 1 {
		j.t.Fatalf("fio's report: %v: %s", err, text)
	}
	r := report.Jobs[0]
	if (j.err == nil) != (r.Error == 0) {
		j.t.Errorf("fio ended with %v but reports error %d", j.err, r.Error)
	}
	return result{r.Error, r.Write.TotalIOs, r.Read.TotalIOs, time.Since(j.started), time.Duration(r.Write.Latency.Max)}
}

// indexJSON finds where the report begins: a brace at the start of a line.
func indexJSON(text []byte) int {
	for i := range text {
		if text[i] == '{' && (i == 0 || text[i-1] == '\n') {
			return i
		}
	}
	return 0
}
