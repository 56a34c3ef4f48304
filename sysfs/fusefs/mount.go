package fusefs

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/sysfs"
)

// ErrNoFUSE is returned by Mount when the kernel has no FUSE, or its module isn't
// loaded: modprobe fuse.
var ErrNoFUSE = errors.New("this kernel has no FUSE (modprobe fuse?)")

// Options are what Mount needs besides the tree.
type Options struct {
	// Name is what the file system is called: as its source, and as its type
	// after "fuse.". "": "attributes". A mount of the same name whose server is
	// dead is replaced.
	Name string
	// Log takes messages about what should not happen. nil: nobody.
	Log func(string)
}

const (
	// maxRequest bounds one read or write, in bytes. More than MaxValue, so that
	// a write that is too long is seen to be; and as many pages as the parts
	// that a writev may have and still be one write.
	maxRequest = 32 << 10
	// A dead mount answers at once. One that doesn't within this time has a
	// server that hangs.
	probeTime = 5 * time.Second
	// patience is how long Unmount leaves requests under way to themselves
	// before it cuts them off.
	patience = time.Second
)

// Server is a mounted tree.
type Server struct {
	dir  string
	tree *tree
	done chan struct{}

	mu        sync.Mutex
	unmounted bool
}

// Mount mounts a tree on a directory, which is made if it isn't there. It must
// be empty. A mount left there by a server that was killed is taken away first.
// Only root can.
func Mount(dir string, root *sysfs.Dir, o Options) (*Server, error) {
	if o.Name == "" {
		o.Name = "attributes"
	}
	if o.Log == nil {
		o.Log = func(string) {}
	}
	dir, err := prepare(dir, "fuse."+o.Name)
	if err != nil {
		return nil, err
	}
	fd, err := mount(dir, o.Name)
	if err != nil {
		return nil, err
	}
	t := newTree(root, o.Log)
	logger := log.New(logWriter(o.Log), "", 0)
	zero := time.Duration(0)
	raw := fs.NewNodeFS(&node{tree: t}, &fs.Options{
		EntryTimeout: &zero, AttrTimeout: &zero,
		NullPermissions: true,
		Logger:          logger,
	})
	// The library takes a descriptor that is mounted already by this name. It
	// would mount by itself too, but with a descriptor that children inherit: one
	// of them would keep the mount of a killed server from failing.
	server, err := fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{
		MaxWrite: maxRequest, MaxBackground: 4,
		DisableXAttrs: true, DisableReadDirPlus: true, DisableSplice: true,
		Name: o.Name, Logger: logger,
	})
	if err != nil {
		unix.Unmount(dir, unix.MNT_DETACH)
		return nil, fmt.Errorf("serving %s: %w", dir, err)
	}
	s := &Server{dir: dir, tree: t, done: make(chan struct{})}
	go func() {
		server.Serve()
		close(s.done)
	}()
	return s, nil
}

// Done is closed when nothing is served any more, by whoever's unmount.
func (s *Server) Done() <-chan struct{} { return s.done }

// Unmount takes the mount away. It waits a second for requests under way,
// and then cuts them off (their callers get ECONNABORTED or ENOTCONN); a process
// that is in the tree doesn't hinder it.
func (s *Server) Unmount() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unmounted {
		return nil
	}
	var err error
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if err = unix.Unmount(s.dir, unix.UMOUNT_NOFOLLOW); err != unix.EBUSY || time.Now().After(end) {
			break
		}
	}
	close(s.tree.closing) // nobody waits for a Show or Store any more
	if err != nil {
		// FORCE breaks the connection, DETACH the mount, whoever uses it.
		err = unix.Unmount(s.dir, unix.UMOUNT_NOFOLLOW|unix.MNT_FORCE|unix.MNT_DETACH)
	}
	s.unmounted = true
	select {
	case <-s.done: // EINVAL above: somebody else has unmounted it
		return nil
	case <-time.After(probeTime):
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", s.dir, err)
	}
	return fmt.Errorf("unmounting %s: it is unmounted here, but still in use, perhaps in another mount namespace", s.dir)
}

// mount mounts and gives the descriptor of the connection.
func mount(dir, name string) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ENODEV || err == unix.ENXIO {
		return -1, fmt.Errorf("mounting %s: %w", dir, ErrNoFUSE)
	} else if err != nil {
		return -1, fmt.Errorf("mounting %s: /dev/fuse: %w", dir, err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,allow_other,default_permissions,max_read=%d",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxRequest)
	if err := unix.Mount(name, dir, "fuse."+name, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mounting %s: %w", dir, err)
	}
	return fd, nil
}

// prepare gives the real path of a directory that can be mounted on.
func prepare(dir, fstype string) (string, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err == nil {
		parent, err = filepath.Abs(parent)
	}
	if err != nil {
		return "", err
	}
	dir = filepath.Join(parent, filepath.Base(dir))
	for range 100 { // mounts can lie over one another
		top, err := mountedOn(dir)
		if err != nil {
			return "", err
		}
		if top == "" {
			return dir, empty(dir)
		}
		err = probe(dir)
		switch {
		case err == nil && top == fstype:
			return "", fmt.Errorf("%s is mounted already, and its server is alive (stop it, or unmount it)", dir)
		case err == nil || top != fstype:
			return "", fmt.Errorf("%s has a file system of type %s mounted on it (unmount it, or choose another directory)", dir, top)
		case !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED): // its server is dead, or just dying
			return "", fmt.Errorf("%s is mounted already, and can't be looked at: %w (does its server hang? umount -l %[1]s)", dir, err)
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return "", fmt.Errorf("%s: unmounting what a dead server left: %w", dir, err)
		}
	}
	return "", fmt.Errorf("%s: there are too many mounts of dead servers on it", dir)
}

// probe looks whether a mount answers.
func probe(dir string) error {
	result := make(chan error, 1)
	go func() { // for good, if it hangs
		_, err := os.Lstat(dir)
		result <- err
	}()
	select {
	case err := <-result:
		return err
	case <-time.After(probeTime):
		return fmt.Errorf("no answer in %v", probeTime)
	}
}

func empty(dir string) error {
	if err := os.Mkdir(dir, 0o755); err == nil {
		return nil
	} else if !errors.Is(err, unix.EEXIST) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory: nothing can be mounted on it", dir)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("%s is not empty (%s): a mount would hide that", dir, names[0].Name())
	}
	return nil
}

// mountedOn is the type of the topmost file system mounted on a directory, ""
// if there is none. It doesn't touch the directory, which could hang.
func mountedOn(dir string) (string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	top := ""
	for line := range strings.Lines(string(info)) {
		// ID parent major:minor root MOUNTPOINT options... - TYPE source ...
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if ok && len(fields) > 4 && unescape(fields[4]) == dir {
			top, _, _ = strings.Cut(after, " ")
		}
	}
	return top, nil
}

// unescape undoes what the kernel does to white space and backslashes in
// mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#").Replace(s)
}

// logWriter makes a log of a function.
type logWriter func(string)

func (f logWriter) Write(p []byte) (int, error) {
	f(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}
