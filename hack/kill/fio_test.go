package kill

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// verifier is fio at work on some devices, which it writes and reads back, until end.
type verifier struct {
	t      *testing.T
	report string
	cmd    *exec.Cmd
	ended  chan struct{}
	err    error
}

// startFio has fio write size bytes of each disk over and over, with so many requests at once, and read
// all of it back. rate bounds the writes a second on each disk, for those who need a processor beside it; 0: no bound.
func startFio(t *testing.T, size, depth, rate int, disks ...string) *verifier {
	t.Helper()
	dir := t.TempDir() // it leaves the state of its verification in the working directory
	v := &verifier{t: t, report: filepath.Join(dir, "report"), ended: make(chan struct{})}
	args := []string{"--output-format=json", "--output=" + v.report, "--direct=1", "--ioengine=libaio", "--rw=randwrite", "--bsrange=4k-64k",
		fmt.Sprintf("--iodepth=%d", depth), "--fsync=64", fmt.Sprintf("--size=%d", size), fmt.Sprintf("--io_size=%d", 1<<40), "--time_based", "--runtime=100000",
		"--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--allow_file_create=0", "--serialize_overlap=1"}
	if rate > 0 {
		args = append(args, fmt.Sprintf("--rate_iops=%d,%d", rate, rate))
	}
	for _, disk := range disks {
		args = append(args, "--name="+filepath.Base(disk), "--filename="+disk)
	}
	v.cmd = exec.Command("fio", args...)
	v.cmd.Dir = dir
	var out bytes.Buffer
	v.cmd.Stdout, v.cmd.Stderr = &out, &out
	must(t, v.cmd.Start())
	go func() {
		if err := v.cmd.Wait(); err != nil {
			v.err = fmt.Errorf("%w: %s", err, out.Bytes())
		}
		close(v.ended)
	}()
	return v
}

// end interrupts it, checks that it has seen no error, and gives the time that its slowest request took.
func (v *verifier) end() (slowest time.Duration) {
	v.t.Helper()
	v.cmd.Process.Signal(syscall.SIGINT) // it ends as if its time were over
	select {
	case <-v.ended:
	case <-time.After(2 * time.Minute):
		v.t.Fatal("fio does not end")
	}
	const interrupted = 128
	var exit *exec.ExitError
	if v.err != nil && (!errors.As(v.err, &exit) || exit.ExitCode() != interrupted) {
		v.t.Errorf("fio: %v", v.err)
	}
	type half struct {
		IOs     int64 `json:"total_ios"`
		Latency struct {
			Max float64 `json:"max"`
		} `json:"clat_ns"`
	}
	var report struct {
		Jobs []struct {
			Name  string `json:"jobname"`
			Error int    `json:"error"`
			Read  half   `json:"read"`
			Write half   `json:"write"`
		} `json:"jobs"`
	}
	text, err := os.ReadFile(v.report)
	must(v.t, err)
	// Warnings may stand before the report.
	if i := bytes.Index(text, []byte("\n{")); i > 0 && text[0] != '{' {
		text = text[i:]
	}
	if err := json.Unmarshal(text, &report); err != nil || len(report.Jobs) == 0 {
		v.t.Fatalf("fio's report: %v: %s", err, text)
	}
	for _, j := range report.Jobs {
		if j.Error != 0 || j.Write.IOs == 0 || j.Read.IOs == 0 {
			v.t.Errorf("fio on %s: error %d, %d writes, %d reads", j.Name, j.Error, j.Write.IOs, j.Read.IOs)
		}
		slowest = max(slowest, time.Duration(j.Read.Latency.Max), time.Duration(j.Write.Latency.Max))
	}
	return slowest
}

// writes waits until some devices have done so many more writes.
func (s *server) writes(more uint64, names ...string) {
	s.t.Helper()
	for _, name := range names {
		var want uint64
		if err := wait(2*time.Minute, func() error {
			d, err := s.client.Device(s.t.Context(), name)
			if err != nil {
				return err
			}
			n := d.Counters.Writes
			if want == 0 || n+more < want { // a server that is new begins to count at 0
				want = n + more
			}
			if n < want {
				return fmt.Errorf("%s has done %d writes, waiting for %d", name, n, want)
			}
			return nil
		}); err != nil {
			s.t.Fatalf("%v\n%s", err, s.logTail())
		}
	}
}

// TestFio: fio verifies what it writes, on one device, while the server is killed.
func TestFio(t *testing.T) {
	needSoak(t)
	kills := count(t, "HOLDFAST_VARIANT_KILLS", 2)
	s := newServer(t, "--targets", "none")
	g := threeDeltas(t, t.TempDir(), 64<<20, 43)
	disk := s.ok(append([]string{"create", "fio"}, g.arguments()...)...)
	requeued, failed := countRequests(t, "block_rq_requeue", disk), countRequests(t, "block_rq_error", disk)
	v := startFio(t, 64<<20, 16, 0, disk)
	recovered := 0
	for range kills {
		s.writes(300, "fio")
		s.killServer("fio")
		s.back("fio")
		recovered += s.recoveries("fio")
	}
	s.writes(300, "fio")
	v.end()
	t.Logf("%d kills, %d recoveries, %d requests reissued, %d failed", kills, recovered, requeued.hits(), failed.hits())
	if recovered != kills || failed.hits() != 0 {
		t.Errorf("%d kills, %d recoveries, %d failed requests", kills, recovered, failed.hits())
	}
	s.ok("remove", "fio")
}
