package server

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A device is unreleased while the driver takes it for served, and its server is no more: the
// driver hears of a server's end by the release of the last reference to its /dev/ublkcN. That may
// be another process's by now. Or it is the kernel's own: what a dead process had under way ends in
// a kernel thread, and a file that is closed there for good goes to one list of the whole machine,
// worked off by one thread (delayed_fput in fs/file_table.c). If that thread is closing a block
// device of ours, it first writes back what is dirty there, which waits for a server, which waits
// for the release further down in the list.
//
// Nothing from outside can end that. STOP_DEV would wait, in the driver and for good, for the
// requests that the dead server had.

// unreleasedTime is how long the removal of such a device waits for its release.
const unreleasedTime = 10 * time.Second

// unreleasedLong is for how long that has to be so, to be worth a word: it is so after every
// death for a moment.
const unreleasedLong = 2 * time.Second

// longUnreleased takes what was just seen. The turn is held.
func (r *recovery) longUnreleased(now bool) bool {
	switch {
	case !now:
		r.unreleasedSince = time.Time{}
	case r.unreleasedSince.IsZero():
		r.unreleasedSince = time.Now()
	}
	return now && time.Since(r.unreleasedSince) > unreleasedLong
}

// To read of a process may have to wait for it, so the search has a bound.
const holdersTime = time.Second

// holdersSearch holds one token while a search is under way.
var holdersSearch = make(chan struct{}, 1)

// findHolders is holdersOf, with a bound. While a search hangs no other begins.
func findHolders(proc string, id int, limit time.Duration) string {
	unknown := fmt.Sprintf("somebody: the search of all processes for who it is has not ended within %v", limit)
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case holdersSearch <- struct{}{}:
	case <-t.C:
		return unknown
	}
	found := make(chan string, 1)
	go func() {
		who := holdersOf(proc, id)
		<-holdersSearch
		found <- who
	}()
	select {
	case who := <-found:
		return who
	case <-t.C:
		return unknown
	}
}

// holdersOf says who keeps /dev/ublkcN: processes that have it open, and threads of the kernel
// that are about to release files and wait for something; "": nobody who can be seen.
func holdersOf(proc string, id int) string {
	var found []string
	path := fmt.Sprintf("/dev/ublkc%d", id)
	all, _ := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	for _, dir := range all {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		name, _ := os.ReadFile(filepath.Join(dir, "comm"))
		who := fmt.Sprintf("process %d (%s)", pid, bytes.TrimSpace(name))
		fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
		for _, fd := range fds {
			if to, err := os.Readlink(filepath.Join(dir, "fd", fd.Name())); err == nil && to == path && pid != os.Getpid() {
				found = append(found, who+" has "+path+" open")
				break
			}
		}
		if len(fds) > 0 {
			continue
		}
		stack, _ := os.ReadFile(filepath.Join(dir, "stack"))
		for _, at := range []string{"delayed_fput", "io_ring_exit_work"} {
			if bytes.Contains(stack, []byte(at)) {
				found = append(found, fmt.Sprintf("perhaps kernel thread %d (%s), which waits in %s", pid, bytes.TrimSpace(name), topOf(stack)))
				break
			}
		}
	}
	return strings.Join(found, "; ")
}

// topOf shortens a kernel stack to its first few functions.
func topOf(stack []byte) string {
	var names []string
	for line := range strings.Lines(string(stack)) {
		_, name, _ := strings.Cut(strings.TrimSpace(line), "] ")
		name, _, _ = strings.Cut(name, "+")
		if names = append(names, name); len(names) == 6 {
			break
		}
	}
	return strings.Join(names, " < ")
}

// unreleasedText is what there is to say of such a device.
func unreleasedText(id int, holders string) string {
	if holders == "" {
		holders = "nobody who can be seen from here (look for kworker threads in state D: /proc/*/stack)"
	}
	return fmt.Sprintf("its server is gone, and /dev/ublkc%d is kept by %s", id, holders)
}
