package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// userHZ is the unit of times in /proc, fixed in the kernel's ABI.
const userHZ = 100

// usage is what processors and schedulers did until now.
type usage struct {
	server   float64 // processor seconds of the server
	kernel   float64 // of all kernel threads
	busy     float64 // of the whole guest
	switches int     // context switches of the server's live threads
}

func (u usage) since(was usage) usage {
	return usage{u.server - was.server, u.kernel - was.kernel, u.busy - was.busy, u.switches - was.switches}
}

func readUsage(s *server) (usage, error) {
	var u usage
	var err error
	if u.kernel, err = kernelThreads(); err != nil {
		return u, err
	}
	if u.busy, err = busy(); err != nil {
		return u, err
	}
	if s.pid == 0 {
		u.server = u.kernel
		return u, nil
	}
	// The process's line counts all of its threads, gone ones and the
	// kernel's workers for its rings too.
	if _, u.server, err = processTimes(strconv.Itoa(s.pid)); err != nil {
		return u, err
	}
	u.switches = switches(s.pid)
	return u, nil
}

// processTimes reads parent and user and system seconds of /proc/PID/stat.
func processTimes(pid string) (parent int, seconds float64, err error) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, 0, err
	}
	// The name may hold blanks and brackets; fields are counted behind it.
	text := string(b)
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(f) < 13 {
		return 0, 0, fmt.Errorf("/proc/%s/stat: %q", pid, text)
	}
	parent, _ = strconv.Atoi(f[1])
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return parent, float64(user+system) / userHZ, nil
}

func kernelThreads() (float64, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for _, d := range dirs {
		parent, t, err := processTimes(filepath.Base(d))
		if err == nil && parent == 2 { // those that ended meanwhile are no loss
			sum += t
		}
	}
	return sum, nil
}

func busy() (float64, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	sum := 0
	for i, f := range strings.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i > 8 { // name, idle, iowait, guests
			continue
		}
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %q", line)
		}
		sum += n
	}
	return float64(sum) / userHZ, nil
}

func switches(pid int) int {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	sum := 0
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(b), "\n") {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.HasSuffix(key, "ctxt_switches") {
				n, _ := strconv.Atoi(strings.TrimSpace(value))
				sum += n
			}
		}
	}
	return sum
}
