//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Enabled says whether the program was built with failpoints.
const Enabled = true

var (
	mu     sync.Mutex
	passes = map[string]int{}
	armed  string // what passes counts for
	off    = strings.Split(os.Getenv("HOLDFAST_FAILSWITCH"), ",")
)

// setting is what is armed now.
func setting() string {
	if file := os.Getenv("HOLDFAST_FAILPOINT_FILE"); file != "" {
		if b, err := os.ReadFile(file); err == nil {
			line, _, _ := strings.Cut(string(b), "\n")
			return strings.TrimSpace(line)
		}
	}
	return os.Getenv("HOLDFAST_FAILPOINT")
}

// Hit dies if the place is armed.
func Hit(name string) {
	if Armed(name) {
		Die(name)
	}
}

// Armed is Hit that leaves the dying to the caller, who has something to do before, and
// then calls Die.
func Armed(name string) bool {
	mu.Lock()
	defer mu.Unlock()
	s := setting()
	if s != armed {
		armed = s
		clear(passes)
	}
	want, count, _ := strings.Cut(s, ":")
	if want != name {
		return false
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		n = 1
	}
	passes[name]++
	return passes[name] == n
}

// Die ends the process as kill -9 does. The next one, that may be started at once, is to live.
func Die(name string) {
	if file := os.Getenv("HOLDFAST_FAILPOINT_FILE"); file != "" {
		os.Remove(file)
	}
	fmt.Fprintf(os.Stderr, "failpoint: %s\n", name)
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// Off says that a protection is switched off.
func Off(name string) bool { return slices.Contains(off, name) }
