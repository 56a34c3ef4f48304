package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

type mountPoint struct {
	fstype, source, target string
	flags                  uintptr
	data                   string
}

func (m mountPoint) mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", m.source, m.fstype, m.target, err)
	}
	return nil
}

// mountEarly mounts what loading modules and finding the ports needs.
func mountEarly() error {
	for _, m := range []mountPoint{
		{"proc", "proc", "/proc", 0, ""},
		{"sysfs", "sysfs", "/sys", 0, ""},
		{"devtmpfs", "devtmpfs", "/dev", 0, ""},
	} {
		if err := m.mount(); err != nil {
			return err
		}
	}
	return nil
}

const (
	p9Root = "trans=virtio,version=9p2000.L,msize=512000,cache=loose"
	// Results go straight to the host, so that they are there whatever
	// becomes of the guest; cache=mmap also allows shared mappings.
	p9Results = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap"
)

// mountAll builds the root from the host's and a tmpfs (or a disk) over it,
// changes into it, and mounts everything that programs expect.
func mountAll(c *Config) error {
	upper := mountPoint{"tmpfs", "tmpfs", "/rw", 0, "mode=755"}
	if c.Systemd {
		if err := waitRootDisk(); err != nil {
			return err
		}
		upper = mountPoint{"ext4", rootDisk, "/rw", 0, ""}
	}
	for _, m := range []mountPoint{
		{"9p", TagRoot, "/ro", unix.MS_RDONLY, p9Root},
		upper,
	} {
		if err := m.mount(); err != nil {
			return err
		}
	}
	for _, d := range []string{"/rw/upper", "/rw/work"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	root := mountPoint{"overlay", "overlay", "/new", 0, "lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work"}
	if err := root.mount(); err != nil {
		return err
	}
	for _, d := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll("/new"+d, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(d, "/new"+d, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s into the new root: %w", d, err)
		}
	}
	// The initramfs can't be pivoted away from; this is what switch_root does.
	if err := unix.Chdir("/new"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the new root to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	shown, err := openShown(c.Show)
	if err != nil {
		return err
	}
	if err := mountModules(c); err != nil {
		return err
	}
	mounts := []mountPoint{
		{"devpts", "devpts", "/dev/pts", 0, "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "tmpfs", "/dev/shm", 0, "mode=1777"},
		{"tmpfs", "tmpfs", "/run", 0, "mode=755"},
		{"tmpfs", "tmpfs", "/tmp", 0, "mode=1777"},
		{"9p", TagResults, ResultsDir, 0, p9Results},
	}
	if !c.Systemd { // which does it itself
		mounts = append(mounts, mountPoint{"cgroup2", "cgroup2", "/sys/fs/cgroup", 0, ""},
			mountPoint{"debugfs", "debugfs", "/sys/kernel/debug", 0, ""})
	}
	for _, m := range mounts {
		if err := m.mount(); err != nil {
			return err
		}
	}
	if err := showAll(shown); err != nil {
		return err
	}
	return setup(c)
}

// shownPath is a path of the host that a tmpfs is about to cover.
type shownPath struct {
	path string
	file *os.File
}

func openShown(paths []string) ([]shownPath, error) {
	var out []shownPath
	for _, p := range paths {
		fd, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open %s, to be shown in the guest: %w", p, err)
		}
		out = append(out, shownPath{p, os.NewFile(uintptr(fd), p)})
	}
	return out, nil
}

// showAll binds the paths opened before the tmpfs came over them.
func showAll(paths []shownPath) error {
	for _, s := range paths {
		st, err := s.file.Stat()
		if err != nil {
			return err
		}
		if st.IsDir() {
			err = os.MkdirAll(s.path, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(s.path), 0o755); err == nil {
			err = os.WriteFile(s.path, nil, 0o644)
		}
		if err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", s.file.Fd()), s.path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("show %s: %w", s.path, err)
		}
		s.file.Close()
	}
	return nil
}

func mountModules(c *Config) error {
	target := "/lib/modules/" + c.Release
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(c.ModulesDir, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", c.ModulesDir, target, err)
	}
	return nil
}

// setup does what is neither a mount nor a command.
func setup(c *Config) error {
	for link, to := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(to, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := makeNodes(); err != nil {
		return err
	}
	if err := os.Mkdir("/run/lock", 0o1777); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	hosts := "127.0.0.1 localhost " + c.Hostname + "\n::1 localhost\n"
	if err := os.WriteFile("/etc/hosts", []byte(hosts), 0o644); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	if err := setModprobe(); err != nil {
		return err
	}
	if c.Systemd {
		return nil
	}
	// configfs may be a module, and modprobe is only usable now.
	m := mountPoint{"configfs", "configfs", "/sys/kernel/config", 0, ""}
	if err := m.mount(); err != nil {
		fmt.Fprintf(os.Stderr, "holdfast-vm: %v\n", err)
	}
	return nil
}

// staticNodes are devices whose nodes must be there before their modules are:
// opening one loads the module. On a usual system udev makes them. Numbers are
// from the kernel's include/linux/miscdevice.h; all are of major 10.
var staticNodes = map[string]uint32{
	"/dev/fuse":           229,
	"/dev/btrfs-control":  234,
	"/dev/mapper/control": 236,
	"/dev/loop-control":   237,
}

func makeNodes() error {
	for name, minor := range staticNodes {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		err := unix.Mknod(name, unix.S_IFCHR|0o600, int(unix.Mkdev(10, minor)))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	return nil
}

// toolsDir holds the links that setModprobe makes; it is last in PATH.
const toolsDir = "/run/holdfast-vm/bin"

// setModprobe sees to it that commands and the kernel (for mount -t xfs, say)
// find a modprobe. A machine without kmod may have a busybox.
func setModprobe() error {
	path := lookTool("modprobe")
	if path == "" {
		box := lookTool("busybox")
		if box == "" {
			fmt.Fprintln(os.Stderr, "holdfast-vm: no modprobe: install kmod on the host")
			return nil
		}
		if err := os.MkdirAll(toolsDir, 0o755); err != nil {
			return err
		}
		for _, t := range []string{"modprobe", "lsmod", "rmmod", "insmod", "modinfo"} {
			if err := os.Symlink(box, filepath.Join(toolsDir, t)); err != nil {
				return err
			}
		}
		path = filepath.Join(toolsDir, "modprobe")
	}
	return os.WriteFile("/proc/sys/kernel/modprobe", []byte(path), 0o644)
}

func lookTool(name string) string {
	for _, d := range strings.Split(Path, ":") {
		p := filepath.Join(d, name)
		if st, err := os.Stat(p); err == nil && st.Mode()&0o111 != 0 && !st.IsDir() {
			return p
		}
	}
	return ""
}

// Path is PATH in the guest.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin:" + toolsDir

// loopbackUp is `ip link set lo up`.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// syncResults makes sure that the host has the files. A device that hangs must
// not keep the verdict from being told, hence the bound.
func syncResults() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if d, err := os.Open(ResultsDir); err == nil {
			unix.Syncfs(int(d.Fd()))
			d.Close()
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		fmt.Fprintln(os.Stderr, "holdfast-vm: syncing /results took over 10 s, given up")
	}
}
