package kill

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a server of an idle device with one queue may cost, beyond its table of 4 bytes a cluster: pages of its own,
// which are mostly Go's heap and its threads' stacks, and what the machine has less, which is these, page
// tables, and the kernel's part of the device, of its rings and of its threads, and what the image takes of a file
// system in memory. Measured were, with 2 processors, on Linux 6.12 with 3 servers 2210 KiB by pages after a creation and
// 2600 after a recovery, on 7.3.4 with 6 servers 2220 and 2960, and of the machine 3770 and 4500, 14 threads and 18
// descriptors. What the machine has left varies by megabytes, so that counts only where there are many servers.
const (
	serverPages       = 3584 << 10 // bytes
	serverMachine     = 6 << 20    // bytes
	serverThreads     = 20
	serverDescriptors = 32
	manyServers       = 16
)

// TestCost: what HOLDFAST_COST_DEVICES idle devices cost, and how long it takes until all are served after all their
// servers, and then after everything was killed.
func TestCost(t *testing.T) {
	sharedOut(t, 1)
	n := count(t, "HOLDFAST_COST_DEVICES", 3)
	s := makeServer(t, "--targets", "none")
	s.needServers()
	if os.Getenv("HOLDFAST_BINARY") == "" {
		path, err := filepath.Abs("../../bin/holdfast")
		must(t, err)
		s.use(path)
		s.needServers()
	}
	s.start()
	s.answers()
	// The first one loads modules, and the program's pages into the page cache.
	warm, _ := s.createMany("warm", 1)
	before, manager := available(t), threads(t, s.process.Pid)
	began := time.Now()
	names, _ := s.createMany("cost", n)
	t.Logf("%d devices created in %v", n, round(time.Since(began)))
	s.cost(t, n, names, before)

	pids := s.serverPIDs()
	for _, pid := range pids {
		must(t, unix.Kill(pid, unix.SIGKILL))
	}
	began = time.Now()
	for name, pid := range pids {
		s.waitServer(name, pid)
	}
	s.serveAll(n + 1)
	t.Logf("all servers killed at once: all devices are served after %v", round(time.Since(began)))
	s.kill()
	s.start()
	t.Logf("all processes killed: all devices are served %v after the start of the manager", round(s.serveAll(n+1)))
	s.cost(t, n, names, before)
	// A manager with many devices is no heavier by threads.
	if now := threads(t, s.process.Pid); now > manager+16 {
		t.Errorf("the manager has %d threads, with one device it had %d", now, manager)
	}

	timed := func(what string, do func() error) {
		t.Helper()
		began := time.Now()
		must(t, do())
		t.Logf("%s: %v", what, round(time.Since(began)))
	}
	timed("list", func() error { _, err := s.run("list"); return err })
	timed("the whole tree", func() error { return readTree(s.dir + "/run/sys") })
	for _, name := range append(names, warm...) {
		s.ok("remove", name)
	}
	must(t, wait(time.Minute, func() error {
		if left := s.servers(); len(left) != 0 {
			return fmt.Errorf("there are servers %v of devices that were removed", left)
		}
		return nil
	}))
}

// cost measures the servers of some devices. before is the memory that was available without them.
func (s *server) cost(t *testing.T, n int, names []string, before int64) {
	t.Helper()
	var pss, most int64
	var maxThreads, maxFiles int
	for _, name := range names {
		pid := s.waitServer(name)
		bytes := field(t, fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss_Anon:") << 10
		pss += bytes
		most = max(most, bytes)
		maxThreads = max(maxThreads, threads(t, pid))
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		must(t, err)
		maxFiles = max(maxFiles, len(files))
	}
	each, machine := pss/int64(n), (before-available(t))/int64(n)
	t.Logf("each of %d servers: %d KiB by its own pages (at most %d), %d KiB of what the machine had; at most %d threads, %d descriptors; manager: %d KiB, %d threads",
		n, each>>10, most>>10, machine>>10, maxThreads, maxFiles,
		field(t, fmt.Sprintf("/proc/%d/smaps_rollup", s.process.Pid), "Pss:"), threads(t, s.process.Pid))
	if each > serverPages || machine > serverMachine && n >= manyServers {
		t.Errorf("a server takes %d KiB by its pages and %d KiB of the machine, want %d and %d at most", each>>10, machine>>10, serverPages>>10, serverMachine>>10)
	}
	if maxThreads > serverThreads || maxFiles > serverDescriptors {
		t.Errorf("a server has %d threads and %d descriptors, want %d and %d at most", maxThreads, maxFiles, serverThreads, serverDescriptors)
	}
}

// available is the memory that the machine has left, in bytes, once what was freed has come back.
func available(t *testing.T) int64 {
	t.Helper()
	unix.Sync()
	time.Sleep(2 * time.Second)
	return field(t, "/proc/meminfo", "MemAvailable:") << 10
}

func threads(t *testing.T, pid int) int {
	t.Helper()
	return int(field(t, fmt.Sprintf("/proc/%d/status", pid), "Threads:"))
}

// field is a number in a file of the kernel's.
func field(t *testing.T, file, name string) int64 {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			must(t, err)
			return n
		}
	}
	t.Fatalf("%s has no %s", file, name)
	return 0
}
