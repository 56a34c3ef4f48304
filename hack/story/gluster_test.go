package story

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/hack/tool"

	"golang.org/x/sys/unix"
)

const (
	volume     = "story"
	glusterDir = "/tmp/story-gluster" // of one guest, which dies with it
)

// volumeOptions make a volume fit for images that are opened with O_DIRECT and
// move from one client to another. What GlusterFS has by default is not said
// again (network.remote-dio disable, io-cache and read-ahead off): glusterd
// takes half a second for each option.
var volumeOptions = []string{
	// O_DIRECT is carried through to the bricks' files, and an acknowledged
	// write is in them.
	"performance.strict-o-direct", "on",
	"performance.write-behind", "off",
	// No client answers out of a cache that another's writes don't reach, and
	// a file that was opened is open.
	"performance.quick-read", "off",
	"performance.stat-prefetch", "off",
	"performance.open-behind", "off",
	// Both copies or none: a copy that was away can't answer for the other,
	// and there is no split brain. Less is answered with ENOTCONN.
	"cluster.quorum-type", "fixed",
	"cluster.quorum-count", "2",
	// After a crash the copies are compared and mended in steps of so many times
	// 128 KiB, each under a lock that writers wait for. As long as it lasts every
	// write takes locks of its own, so be done with it soon.
	"cluster.self-heal-window-size", "128",
	// A client gives a brick that is silent, not gone, up after so many seconds.
	"network.ping-timeout", "10",
}

// gluster is a volume with both bricks on this machine, mounted twice. There is
// one for all tests.
type gluster struct {
	mounts [2]string
}

var glusterOnce struct {
	sync.Once
	g   *gluster
	err error
}

// needGluster brings the volume up at the first call. It stays: the guest ends
// with the tests.
func needGluster(t *testing.T) *gluster {
	t.Helper()
	glusterOnce.Do(func() { glusterOnce.g, glusterOnce.err = startGluster(t) })
	if glusterOnce.err != nil {
		t.Fatal(glusterOnce.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			logTails(t, "/var/log/glusterfs/glusterd.log", "/var/log/glusterfs/*story-gluster-mount*.log")
		}
	})
	return glusterOnce.g
}

func startGluster(t *testing.T) (*gluster, error) {
	start := time.Now()
	g := &gluster{}
	for i := range g.mounts {
		g.mounts[i] = fmt.Sprintf("%s/mount%d", glusterDir, i+1)
	}
	for _, dir := range []string{"/var/lib/glusterd", "/var/log/glusterfs", "/run/gluster", glusterDir + "/brick1", glusterDir + "/brick2", g.mounts[0], g.mounts[1]} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := hideGsyncd(); err != nil {
		return nil, err
	}
	if err := tool.Run("glusterd", "--log-level", "WARNING"); err != nil {
		return nil, err
	}
	if err := wait(time.Minute, func() error { return tool.Run("gluster", "--mode=script", "volume", "list") }); err != nil {
		return nil, fmt.Errorf("glusterd: %w", err)
	}
	// It must resolve, and glusterd takes no loopback address for it.
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	brick := host + ":" + glusterDir + "/brick"
	for _, args := range [][]string{
		{"create", volume, "replica", "2", brick + "1", brick + "2", "force"},
		append([]string{"set", volume}, volumeOptions...),
		{"start", volume},
	} {
		if err := tool.Run("gluster", append([]string{"--mode=script", "volume"}, args...)...); err != nil {
			return nil, err
		}
	}
	for _, m := range g.mounts {
		// What mount -t glusterfs comes to after a long shell script.
		if err := tool.Run("glusterfs", "--process-name", "fuse", "--volfile-server="+host, "--volfile-id=/"+volume, m); err != nil {
			return nil, err
		}
	}
	for _, m := range g.mounts {
		if err := wait(time.Minute, func() error { return mounted(m) }); err != nil {
			return nil, err
		}
	}
	t.Logf("volume started and mounted twice in %v", since(start))
	return g, nil
}

// hideGsyncd makes the program of geo-replication look absent: to run it is
// answered with ENOENT, as its interpreter does not exist. glusterd runs it a
// dozen times when it starts, to configure what is not used here, and it is a
// large Python program: that takes 20 s in an emulated guest.
func hideGsyncd() error {
	found, err := filepath.Glob("/usr/lib*/*/glusterfs/gsyncd")
	if err != nil || len(found) == 0 {
		return err
	}
	stub := glusterDir + "/gsyncd"
	if err := os.WriteFile(stub, []byte("#!/nonexistent\n"), 0o755); err != nil {
		return err
	}
	for _, path := range found {
		if err := unix.Mount(stub, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s over %s: %w", stub, path, err)
		}
	}
	return nil
}

// answers tells whether a mount takes a write that is acknowledged by the
// bricks, or with which error it answers.
func answers(mount string) error {
	f, err := os.OpenFile(mount+"/probe", os.O_RDWR|os.O_CREATE|syscall.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(aligned(4096), 0); err != nil {
		return err
	}
	return f.Sync()
}

// mounted tells whether a mount is there and answers, so that nothing is
// written below the mount point.
func mounted(mount string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(mount, &fs); err != nil {
		return err
	}
	if fs.Type != unix.FUSE_SUPER_MAGIC {
		return fmt.Errorf("%s is not mounted", mount)
	}
	return answers(mount)
}

// kill ends both bricks as a crash would, and returns when they are gone.
func (g *gluster) kill(t *testing.T) {
	t.Helper()
	var pids []int
	files, _ := filepath.Glob("/run/gluster/vols/" + volume + "/*.pid")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		pids = append(pids, pid)
	}
	if len(pids) != 2 {
		t.Fatalf("%d bricks run, want 2", len(pids))
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("kill brick %d: %v", pid, err)
		}
	}
	for _, pid := range pids {
		if err := wait(time.Minute, func() error {
			if syscall.Kill(pid, 0) == nil {
				return fmt.Errorf("brick %d is still there", pid)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// revive starts the bricks again and returns when the mount answers.
func (g *gluster) revive(t *testing.T, mount string) {
	t.Helper()
	if err := tool.Run("gluster", "--mode=script", "volume", "start", volume, "force"); err != nil {
		t.Fatal(err)
	}
	if err := wait(5*time.Minute, func() error { return answers(mount) }); err != nil {
		t.Fatalf("%s after the bricks were started again: %v", mount, err)
	}
}

// wait calls f until it returns nil, or returns its last error.
func wait(timeout time.Duration, f func() error) error {
	for deadline := time.Now().Add(timeout); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", timeout, err)
		}
	}
}
