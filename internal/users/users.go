// Package users finds out who holds block devices: mounts, swap, devices stacked on them, loop
// devices, targets and processes. It reads /proc and /sys only.
package users

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/api"
)

// Find says who holds ublk disks, given as number → path, their partitions included, at the price
// of one walk over all processes. It looks at mounts (of every mount namespace that can be seen),
// swap, block devices stacked on it, loop devices, LIO backstores and open file descriptors.
//
// It is a report, not a lock: somebody may come or go right after. What
// decides is the kernel (TRY_STOP_DEV); this says the reason in words. An
// unreadable piece of /proc or /sys is skipped, as processes vanish while one
// looks and a caller without full rights still sees the mounts. An error means
// that there may be more: the mounts could not be read, or a process hangs.
func Find(proc, sys string, disks map[int]string) (map[int][]api.User, error) {
	s := userSearch{proc: proc, sys: sys,
		byNumber: map[string]blockName{}, byName: map[string]blockName{},
		found: map[int]map[api.User]bool{}}
	for id, path := range disks {
		s.addDisk(id, path)
	}
	if len(disks) == 0 {
		return nil, nil
	}
	err := s.mounts()
	s.swaps()
	s.holders()
	s.loops()
	s.targets()
	err = errors.Join(err, s.processes())
	out := make(map[int][]api.User, len(s.found))
	for id, set := range s.found {
		for u := range set {
			out[id] = append(out[id], u)
		}
		sort.Slice(out[id], func(i, j int) bool { return lessUser(out[id][i], out[id][j]) })
	}
	return out, err
}

func lessUser(a, b api.User) bool {
	if r, q := kindRank[a.Kind], kindRank[b.Kind]; r != q {
		return r < q
	}
	if a.Device != b.Device {
		return a.Device < b.Device
	}
	if a.Name != b.Name {
		return a.Name < b.Name
	}
	return a.PID < b.PID
}

// kindRank puts what an administrator has to undo first at the front.
var kindRank = map[string]int{"mount": 0, "swap": 1, "holder": 2, "loop": 3, "target": 4, "process": 5}

// A blockName is a disk or a partition that is looked for.
type blockName struct {
	id   int    // of the disk
	name string // "ublkb0" or "ublkb0p1"
}

type userSearch struct {
	proc, sys string
	byNumber  map[string]blockName // "major:minor" as in mountinfo
	byName    map[string]blockName // "ublkb0", "ublkb0p1"
	ours      map[blockName]bool   // mounted in our own namespace
	found     map[int]map[api.User]bool
}

func (s *userSearch) add(b blockName, u api.User) {
	u.Device = b.name
	if s.found[b.id] == nil {
		s.found[b.id] = map[api.User]bool{}
	}
	s.found[b.id][u] = true
}

// addDisk learns the numbers of the disk and its partitions from sysfs. A disk
// that sysfs doesn't know is still looked for by its name.
func (s *userSearch) addDisk(id int, path string) {
	disk := "ublkb" + strconv.Itoa(id)
	if base := filepath.Base(path); path != "" && base != disk {
		s.byName[base] = blockName{id, disk} // an alias of the same node
	}
	s.addName(id, disk, filepath.Join(s.sys, "block", disk))
	parts, _ := filepath.Glob(filepath.Join(s.sys, "block", disk, disk+"p*", "partition"))
	for _, p := range parts {
		dir := filepath.Dir(p)
		s.addName(id, filepath.Base(dir), dir)
	}
}

func (s *userSearch) addName(id int, name, dir string) {
	b := blockName{id, name}
	s.byName[name] = b
	if dev := readLine(filepath.Join(dir, "dev")); dev != "" {
		s.byNumber[dev] = b
	}
}

// lookup finds the disk or partition that a path in /dev names. The path is
// compared by its last element: the node may be seen through a container's
// /dev, and asking the file system with stat could hang for ever when that
// /dev lies on dead storage.
func (s *userSearch) lookup(path string) (blockName, bool) {
	path = strings.TrimSuffix(path, " (deleted)")
	if !strings.Contains(path, "/dev/") {
		return blockName{}, false
	}
	b, ok := s.byName[filepath.Base(path)]
	return b, ok
}

// mounts reads the mount table of our own namespace.
func (s *userSearch) mounts() error {
	own, err := os.ReadFile(filepath.Join(s.proc, "self/mountinfo"))
	if err != nil {
		return fmt.Errorf("cannot tell who uses the device: %w", err)
	}
	s.ours = s.mountTable(own)
	return nil
}

// mountTable adds the mounts of our own table, and returns them.
func (s *userSearch) mountTable(table []byte) map[blockName]bool {
	seen := map[blockName]bool{}
	for line := range bytes.Lines(table) {
		if b, point, ok := s.mountLine(string(line)); ok {
			seen[b] = true
			s.add(b, api.User{Kind: "mount", Name: point})
		}
	}
	return seen
}

// mountTableOther adds what is mounted in a foreign namespace only: the copies
// of our own mounts, which every container's namespace begins with, would be
// noise.
func (s *userSearch) mountTableOther(table []byte, pid int) {
	for line := range bytes.Lines(table) {
		if b, point, ok := s.mountLine(string(line)); ok && !s.ours[b] {
			s.add(b, api.User{Kind: "mount", Name: point, PID: pid})
		}
	}
}

// mountLine takes a line of mountinfo apart:
//
//	36 35 259:0 /root /mount/point rw,noatime master:1 - ext4 /dev/ublkb0 rw
//
// btrfs and the like have a number of their own in the third field, so the
// source, after the lone dash, counts too.
func (s *userSearch) mountLine(line string) (blockName, string, bool) {
	f := strings.Fields(line)
	if len(f) < 6 {
		return blockName{}, "", false
	}
	b, ok := s.byNumber[f[2]]
	if !ok {
		for i := 6; i < len(f); i++ {
			if f[i] == "-" && i+2 < len(f) {
				b, ok = s.lookup(unescapeOctal(f[i+2]))
				break
			}
		}
	}
	return b, unescapeOctal(f[4]), ok
}

func (s *userSearch) swaps() {
	data, err := os.ReadFile(filepath.Join(s.proc, "swaps"))
	if err != nil {
		return
	}
	for line := range bytes.Lines(data) {
		f := strings.Fields(string(line))
		if len(f) < 2 || f[1] != "partition" {
			continue
		}
		path := unescapeOctal(f[0])
		if b, ok := s.lookup(path); ok {
			s.add(b, api.User{Kind: "swap", Name: path})
		}
	}
}

// holders lists the block devices stacked on ours, from sysfs.
func (s *userSearch) holders() {
	for _, b := range s.byName {
		dir := filepath.Join(s.sys, "block", "ublkb"+strconv.Itoa(b.id))
		if b.name != filepath.Base(dir) {
			dir = filepath.Join(dir, b.name)
		}
		entries, err := os.ReadDir(filepath.Join(dir, "holders"))
		if err != nil {
			continue
		}
		for _, e := range entries {
			name := e.Name()
			if dm := readLine(filepath.Join(s.sys, "block", name, "dm/name")); dm != "" {
				name += " (" + dm + ")"
			}
			s.add(b, api.User{Kind: "holder", Name: name})
		}
	}
}

func (s *userSearch) loops() {
	files, _ := filepath.Glob(filepath.Join(s.sys, "block/loop*/loop/backing_file"))
	for _, f := range files {
		if b, ok := s.lookup(readLine(f)); ok {
			s.add(b, api.User{Kind: "loop", Name: "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(f)))})
		}
	}
}

// targets reads LIO's configfs: the kernel has the device open itself then, so
// no process shows it. udev_path is what the configuring tool wrote there.
func (s *userSearch) targets() {
	files, _ := filepath.Glob(filepath.Join(s.sys, "kernel/config/target/core/*/*/udev_path"))
	for _, f := range files {
		if b, ok := s.lookup(readLine(f)); ok {
			stack := filepath.Dir(f)
			s.add(b, api.User{Kind: "target", Name: filepath.Base(filepath.Dir(stack)) + "/" + filepath.Base(stack)})
		}
	}
}

func (s *userSearch) pids() []int {
	entries, err := os.ReadDir(s.proc)
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	sort.Ints(pids)
	return pids
}

// processes looks at every process: for open descriptors, and for a mount namespace that
// none before it had, as a file system mounted in a container only shows there.
func (s *userSearch) processes() error {
	own, _ := os.Readlink(filepath.Join(s.proc, "self/ns/mnt"))
	seen := map[string]bool{own: true}
	var hang []string
	patience := time.Now().Add(inspectTime)
	for _, pid := range s.pids() {
		p, ok := s.patiently(pid, max(time.Until(patience), inspectTime/20))
		if !ok {
			hang = append(hang, strconv.Itoa(pid))
			continue
		}
		for b := range p.open {
			s.add(b, api.User{Kind: "process", Name: p.name, PID: pid})
		}
		if p.ns != "" && !seen[p.ns] {
			seen[p.ns] = true
			if table, err := os.ReadFile(filepath.Join(s.proc, strconv.Itoa(pid), "mountinfo")); err == nil {
				s.mountTableOther(table, pid)
			}
		}
	}
	if hang != nil {
		return fmt.Errorf("what processes %s have open can't be told: they hang", strings.Join(hang, ", "))
	}
	return nil
}

// A process that begins or ends and waits for storage meanwhile can't be looked at on some
// kernels, and who looks waits with it. Such a look is left alone, and not taken twice.
var inspectTime = time.Second // for all that hang together, and a twentieth for each

var inspected sync.Map // paths of processes that are being looked at

func (s *userSearch) patiently(pid int, patience time.Duration) (process, bool) {
	dir := filepath.Join(s.proc, strconv.Itoa(pid))
	if _, hangs := inspected.LoadOrStore(dir, true); hangs {
		return process{}, false
	}
	came := make(chan process, 1)
	go func() {
		defer inspected.Delete(dir)
		came <- s.inspect(dir)
	}()
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case p := <-came:
		return p, true
	case <-t.C:
		return process{}, false
	}
}

// process is what is known of one.
type process struct {
	ns   string // its mount namespace
	name string
	open map[blockName]bool
}

// inspect leaves out what can't be read: the process is gone, or another user's.
func (s *userSearch) inspect(dir string) (p process) {
	p.ns, _ = os.Readlink(filepath.Join(dir, "ns/mnt"))
	fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
	for _, fd := range fds {
		path, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
		if err != nil {
			continue
		}
		b, ok := s.lookup(path)
		if !ok {
			continue
		}
		if p.open == nil {
			p.open = map[blockName]bool{}
			if p.name = readLine(filepath.Join(dir, "comm")); p.name == "" {
				p.name = "?"
			}
		}
		p.open[b] = true
	}
	return p
}

// readLine is a small file's content without the newline; "" if unreadable.
func readLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(data), "\n")
}

// unescapeOctal undoes the kernel's \040 for space, tab, newline and backslash
// in mount tables.
func unescapeOctal(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
