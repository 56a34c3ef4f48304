package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

	pid int // 0: the kernel's own threads
}

const (
	loopName       = "loop"
	kublkName      = "kublk"
	kublkZCName    = "kublk-azc"
	nbdName        = "qemu-nbd"
	holdfastName   = "holdfast"
	holdfastRawRef = "holdfast-raw"
)

// startServers makes all devices: loop, kublk and holdfast-raw on one raw file,
// qemu-nbd and holdfast each on an image of the same content and layout (both
// lock theirs). They stay for the whole run; those that wait cost nothing.
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
	add := func(s *server, err error) error {
		if err == nil {
			all = append(all, s)
		}
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	const queues = "2"
	return all, errors.Join(
		add(startLoop(raw)),
		add(start(g, kublkName, "/dev/ublkb10", g.kublk, "add", "-t", "loop", "-q", queues, "-d", "128", "-n", "10", "--foreground", raw)),
		add(start(g, kublkZCName, "/dev/ublkb11", g.kublk, "add", "-t", "loop", "-q", queues, "-d", "128", "-n", "11", "--auto_zc", "--foreground", raw)),
		add(start(g, nbdName, "/dev/nbd0", "qemu-nbd", "--verbose", "-f", "parallels", "--cache=none", "--aio=io_uring", "--discard=unmap", "-c", "/dev/nbd0", second)),
		add(start(g, holdfastName, "/dev/ublkb0", self, "serve", "-profile", g.profile, "-name", holdfastName, image)),
		add(start(g, holdfastRawRef, "/dev/ublkb1", self, "serve", "-profile", g.profile, "-name", holdfastRawRef, "raw@"+raw)),
	)
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
	s := &server{name: name, path: device, cmd: cmd, pid: cmd.Process.Pid}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := s.ready(ended); err != nil {
		return nil, fmt.Errorf("%s: %w; what it said is in %s", name, err, log.Name())
	}
	return s, nil
}

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
		size, _ := os.ReadFile("/sys/block/" + filepath.Base(s.path) + "/size")
		if n, _ := strconv.Atoi(strings.TrimSpace(string(size))); n > 0 {
			if fd, err := unix.Open(s.path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
				unix.Close(fd)
				return os.WriteFile("/sys/block/"+filepath.Base(s.path)+"/queue/scheduler", []byte("none"), 0)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no %s after a minute", s.path)
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
