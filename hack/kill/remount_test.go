package kill

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/hack/faultfs"
	"holdfast/ublk"
)

// TestFenceRemounted: the storage is detached and mounted anew while a write of the dead server is on its way.
// The lock is had there at once, and proves nothing; the device waits until the old mount is
// wholly gone, which is when that write has landed.
func TestFenceRemounted(t *testing.T) {
	sharedOut(t, 1)
	f := killedWriting(t)
	seeFUSE(t)
	must(t, unix.Unmount(f.storage.Dir, unix.MNT_DETACH))
	again, err := faultfs.Mount(f.storage.Backing, f.storage.Dir, faultfs.Options{AsyncIO: true})
	must(t, err)
	t.Cleanup(func() { again.Close() })
	f.start()
	f.answers()
	var d *api.Device
	must(t, wait(time.Minute, func() error {
		var err error
		if d, err = f.client.Device(t.Context(), "fence"); err == nil && !strings.Contains(d.Problem, "another mount") {
			err = fmt.Errorf("state %s, problem %q", d.State, d.Problem)
		}
		return err
	}))
	t.Logf("it waits: %s: %s (%s)", d.State, d.Problem, d.Advice)
	time.Sleep(2 * time.Second) // long enough for it to go on, if it did
	select {
	case err := <-f.written:
		t.Fatalf("the user's write was answered (%v) while the dead server's was on its way", err)
	default:
	}
	f.lands(t)
	f.finish(t, 'C')
}

// seeFUSE mounts the control file system of FUSE, if it isn't.
func seeFUSE(t *testing.T) {
	t.Helper()
	const dir = "/sys/fs/fuse/connections"
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if st.Type != 0x65735543 { // FUSE_CTL_SUPER_MAGIC
		must(t, unix.Mount("none", dir, "fusectl", 0, ""))
	}
}

// TestNumberedAnew: storage gives its files other inode numbers at each mount, and what is served
// from it is recovered all the same.
func TestNumberedAnew(t *testing.T) {
	sharedOut(t, 0)
	s := newServer(t, "--targets", "none")
	seeFUSE(t)
	backing, dir := t.TempDir(), t.TempDir()
	mount := func() *faultfs.Storage {
		t.Helper()
		storage, err := faultfs.Mount(backing, dir, faultfs.Options{AsyncIO: true, Renumber: true})
		must(t, err)
		t.Cleanup(func() { storage.Close() })
		return storage
	}
	storage := mount()
	number := func() uint64 {
		var st unix.Stat_t
		must(t, unix.Stat(dir+"/image.hds", &st))
		return st.Ino
	}
	s.ok("image", "create", "--size", "8M", dir+"/image.hds")
	must(t, os.WriteFile(dir+"/raw", bytes.Repeat([]byte("raw "), 1<<20), 0o600))
	var disks []*BlockDevice
	for name, image := range map[string]string{"ploop": dir + "/image.hds", "raw": "raw@" + dir + "/raw"} {
		d, err := OpenBlockDevice(s.ok("create", name, "--image", image))
		must(t, err)
		t.Cleanup(d.Close)
		_, err = d.WriteAt(letter('A'), 0)
		must(t, err)
		disks = append(disks, d)
	}
	was := number()
	s.kill()
	must(t, wait(time.Minute, func() error { return unix.Unmount(dir, 0) }))
	storage.Kill()
	mount()
	if number() == was {
		t.Fatal("the inode number is as it was: the test shows nothing")
	}
	s.start()
	s.answers()
	s.serves("ploop")
	s.serves("raw")
	for _, d := range disks {
		p := aligned(fenceBlock)
		if _, err := d.ReadAt(p, 0); err != nil || p[0] != 'A' {
			t.Errorf("reads %q, %v", p[:1], err)
		}
		d.Close()
	}
	s.ok("remove", "ploop")
	s.ok("remove", "raw")
}

// TestGrown: the owner of a raw image has lengthened it. The disk stays as it is, through an
// upgrade and a kill. An image that became shorter is no reason to leave it.
func TestGrown(t *testing.T) {
	sharedOut(t, 1)
	s := newServer(t, "--targets", "none")
	const size = 4 << 20
	image := filepath.Join(t.TempDir(), "raw")
	must(t, os.WriteFile(image, make([]byte, size), 0o600))
	path := s.ok("create", "raw", "--image", "raw@"+image)
	d, err := OpenBlockDevice(path)
	must(t, err)
	t.Cleanup(d.Close)
	write := func(c byte) {
		t.Helper()
		_, err := d.WriteAt(letter(c), size-fenceBlock)
		must(t, err)
		p := aligned(fenceBlock)
		if _, err := d.ReadAt(p, size-fenceBlock); err != nil || p[0] != c {
			t.Fatalf("reads %q, %v", p[:1], err)
		}
	}
	write('A')
	must(t, os.Truncate(image, size+32<<20))
	s.upgrade()
	s.becomes("raw", api.StateLive)
	write('B')
	s.kill()
	must(t, os.Truncate(image, size+32<<20+100))
	s.restart("raw")
	write('C')
	if d, err := s.client.Device(t.Context(), "raw"); err != nil || d.Size != size {
		t.Errorf("%+v, %v", d, err)
	}
	must(t, os.Truncate(image, size-fenceBlock))
	if out, err := s.run("upgrade"); err != nil || !strings.Contains(out, "raw: kept") {
		t.Errorf("upgrade with a short image: %q, %v", out, err)
	}
	must(t, os.Truncate(image, size))
	s.becomes("raw", api.StateLive)
	write('D')
	d.Close()
	s.ok("remove", "raw")
}

// TestUnreleased: somebody keeps the killed server's /dev/ublkcN open. The device has a state of
// its own, says who, and a removal by force ends.
func TestUnreleased(t *testing.T) {
	s := newServer(t, "--targets", "none")
	ctl, err := ublk.Open("")
	must(t, err)
	have, err := ctl.Features(t.Context())
	must(t, errors.Join(err, ctl.Close()))
	if !have.Has(ublk.FeatureQuiesce) {
		t.Skip("this driver looks at the server's threads, and not who has its file")
	}
	w := s.serve("kept", oneDelta(t, t.TempDir(), 8<<20, 17), 2)
	w.advances(10)
	made, err := s.client.Device(t.Context(), "kept")
	must(t, err)
	kept := s.take("kept", fmt.Sprintf("/dev/ublkc%d", made.ID))
	holder := exec.Command("sleep", "600")
	holder.ExtraFiles = []*os.File{kept}
	must(t, holder.Start())
	kept.Close()
	t.Cleanup(func() { holder.Process.Kill(); holder.Wait() })
	s.kill()
	s.start()
	s.answers()
	d := s.becomes("kept", api.StateUnreleased)
	who := fmt.Sprintf("process %d (sleep)", holder.Process.Pid)
	// A look at all processes takes its time on a slow machine, and is then begun anew.
	if err := wait(time.Minute, func() error {
		if d, err = s.client.Device(t.Context(), "kept"); err == nil && !strings.Contains(d.Problem, who) {
			err = fmt.Errorf("problem %q, want %s", d.Problem, who)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if why := s.ok("why", "kept"); !strings.Contains(why, who) {
		t.Errorf("why says %s", why)
	}
	if show := s.ok("show", "kept"); strings.Contains(show, "not locked") || strings.Contains(show, " 0B") {
		t.Errorf("show says what isn't known:\n%s", show)
	}
	if _, err := s.run("remove", "--force", "kept"); err == nil || !strings.Contains(err.Error(), who) {
		t.Errorf("remove --force: %v", err)
	}
	must(t, holder.Process.Kill())
	s.serves("kept")
	w.advances(10)
	s.remove("kept", w)
}

// take gives a descriptor of the open file that a device's server has.
func (s *server) take(name, path string) *os.File {
	s.t.Helper()
	pid := s.waitServer(name)
	pidfd, err := unix.PidfdOpen(pid, 0)
	must(s.t, err)
	defer unix.Close(pidfd)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	must(s.t, err)
	for _, e := range entries {
		if to, _ := os.Readlink(filepath.Join(dir, e.Name())); to == path {
			var n int
			fmt.Sscan(e.Name(), &n)
			fd, err := unix.PidfdGetfd(pidfd, n, 0)
			must(s.t, err)
			return os.NewFile(uintptr(fd), path)
		}
	}
	s.t.Fatalf("the server doesn't have %s open", path)
	return nil
}
