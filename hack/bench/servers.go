package main

import (
	"cmp"
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

// server is a block device under test and what serves it.
type server struct {
	name string
	path string // of the block device
	cmd  *exec.Cmd
	undo []string // command that ends it, for one that isn't a process

	pid  int    // 0: the kernel's own threads
	said string // file with its output
}

const (
	loopName       = "loop"
	kublkName      = "kublk"
	kublkZCName    = "kublk-azc"
	nbdName        = "qemu-nbd"
	holdfastName   = "holdfast"
	holdfastRawRef = "holdfast-raw"
	// ublk/examples: what package ublk does without what holdfast puts on it.
	fileName      = "file"
	nullName      = "null"
	kublkNullName = "kublk-null"
)

// startServers makes the devices that are wanted: loop, kublk, holdfast-raw and file on one raw
// file, qemu-nbd and holdfast each on an image of the same content and layout (both
// lock theirs), null and kublk-null on nothing. They stay for the whole run; those that wait
// cost nothing.
func startServers(g *guestOptions) (all []*server, err error) {
	defer func() {
		if err != nil {
			stopServers(all)
		}
	}()
	for _, m := range [][]string{{"ublk_drv"}, {"loop"}, {"nbd", "nbds_max=1", "max_part=0"}} {
		if err := command("modprobe", m...); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll("/run/lock", 0o755); err != nil {
		return nil, err
	}
	raw, image, second := filepath.Join(g.dir, "raw"), filepath.Join(g.dir, "image.hds"), filepath.Join(g.dir, "image-nbd.hds")
	if err := makeRaw(raw, g.size*mib); err != nil {
		return nil, err
	}
	if err := makeImage(image, g.size*mib); err != nil {
		return nil, err
	}
	if err := command("cp", "--sparse=never", image, second); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	const queues = "2"
	holdfast := func(name, image string) []string {
		return []string{self, "serve", "-profile", g.profile, "-name", name, image}
	}
	kublk := func(args ...string) []string {
		return append([]string{g.kublk, "add", "-q", queues, "-d", "128", "--foreground"}, args...)
	}
	example := func(name string, args ...string) []string {
		return append([]string{filepath.Join(filepath.Dir(self), name), "-queues", queues, "-depth", "128"}, args...)
	}
	for _, s := range []struct {
		name, device string // "": the server says it
		command      []string
	}{
		{loopName, "", nil},
		{kublkName, "/dev/ublkb10", kublk("-t", "loop", "-n", "10", raw)},
		{kublkZCName, "/dev/ublkb11", kublk("-t", "loop", "-n", "11", "--auto_zc", raw)},
		{nbdName, "/dev/nbd0", []string{"qemu-nbd", "--verbose", "-f", "parallels", "--cache=none", "--aio=io_uring", "--discard=unmap", "-c", "/dev/nbd0", second}},
		{holdfastName, "", holdfast(holdfastName, image)},
		{holdfastRawRef, "", holdfast(holdfastRawRef, "raw@"+raw)},
		{fileName, "", example(fileName, raw)},
		{nullName, "", example(nullName, "-size", "268435456000", "-stale")}, // both as kublk's
		{kublkNullName, "/dev/ublkb14", kublk("-t", "null", "-n", "14", "--auto_zc")},
	} {
		if !slices.Contains(g.wanted(), s.name) {
			continue
		}
		var server *server
		if s.command == nil {
			server, err = startLoop(raw)
		} else {
			server, err = start(g, s.name, s.device, s.command...)
		}
		if err != nil {
			return all, err
		}
		all = append(all, server)
	}
	return all, nil
}

func startLoop(file string) (*server, error) {
	out, err := exec.Command("losetup", "--direct-io=on", "--find", "--show", file).Output()
	if err != nil {
		return nil, fmt.Errorf("losetup: %w", err)
	}
	s := &server{name: loopName, path: strings.TrimSpace(string(out))}
	s.undo = []string{"losetup", "--detach", s.path}
	if dio, _ := os.ReadFile("/sys/block/" + filepath.Base(s.path) + "/loop/dio"); strings.TrimSpace(string(dio)) != "1" {
		return nil, fmt.Errorf("%s: direct I/O is not on", s.path)
	}
	return s, s.ready(nil)
}

// start runs a server in the foreground (qemu-nbd stays there only if told to be
// verbose) and waits for its device.
func start(g *guestOptions, name, device string, args ...string) (*server, error) {
	log, err := os.Create(filepath.Join(g.out, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{name: name, path: device, cmd: cmd, pid: cmd.Process.Pid, said: log.Name()}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := s.ready(ended); err != nil {
		return nil, fmt.Errorf("%s: %w; what it said is in %s", name, err, log.Name())
	}
	return s, nil
}

// devicePath is what our servers print first.
var devicePath = regexp.MustCompile(`/dev/ublkb[0-9]+\b`)

// ready waits until the device can be opened and has a size, and takes the I/O
// scheduler away, which the devices have by different defaults.
func (s *server) ready(ended <-chan error) error {
	deadline := time.Now().Add(time.Minute)
	for {
		select {
		case err := <-ended:
			return fmt.Errorf("it ended before its device was there: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no %s after a minute", cmp.Or(s.path, "device"))
		}
		if s.path == "" {
			said, _ := os.ReadFile(s.said)
			if s.path = string(devicePath.Find(said)); s.path == "" {
				continue
			}
		}
		size, _ := os.ReadFile("/sys/block/" + filepath.Base(s.path) + "/size")
		if n, _ := strconv.Atoi(strings.TrimSpace(string(size))); n > 0 {
			if fd, err := unix.Open(s.path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
				unix.Close(fd)
				return os.WriteFile("/sys/block/"+filepath.Base(s.path)+"/queue/scheduler", []byte("none"), 0)
			}
		}
	}
}

// stopServers ends what startServers started and gives each some seconds for it:
// holdfast has something left to say. What then still runs ends with the guest.
func stopServers(all []*server) {
	for _, s := range all {
		if s.undo != nil {
			_ = command(s.undo[0], s.undo[1:]...)
			continue
		}
		_ = s.cmd.Process.Signal(unix.SIGTERM)
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if s.cmd.Process.Signal(unix.Signal(0)) != nil {
				break
			}
		}
	}
}
