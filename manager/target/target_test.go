package target

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// world is a made-up /sys, /proc and configfs.
type world struct {
	t       *testing.T
	dir     string
	numbers map[string][2]uint32
}

func newWorld(t *testing.T) *world {
	return &world{t: t, dir: t.TempDir(), numbers: map[string][2]uint32{}}
}

func (w *world) roots() Roots {
	return Roots{
		Configfs: filepath.Join(w.dir, "config"), SCST: filepath.Join(w.dir, "scst_tgt"), Sys: filepath.Join(w.dir, "sys"), Proc: filepath.Join(w.dir, "proc"),
		TgtAdm: filepath.Join(w.dir, "tgtadm"),
		Number: func(path string) (uint32, uint32, bool) { n, ok := w.numbers[path]; return n[0], n[1], ok },
	}
}

func (w *world) write(path, text string) {
	w.t.Helper()
	path = filepath.Join(w.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) mkdir(path string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Join(w.dir, path), 0o755); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) remove(path string) {
	w.t.Helper()
	if err := os.RemoveAll(filepath.Join(w.dir, path)); err != nil {
		w.t.Fatal(err)
	}
}

// block makes a block device: where in sysfs, its number, its node.
func (w *world) block(at string, major, minor string, number [2]uint32, nodes ...string) {
	w.t.Helper()
	w.mkdir("sys/devices/" + at)
	w.mkdir("sys/dev/block")
	if err := os.Symlink(filepath.Join(w.dir, "sys/devices", at), filepath.Join(w.dir, "sys/dev/block", major+":"+minor)); err != nil {
		w.t.Fatal(err)
	}
	for _, n := range nodes {
		w.numbers[n] = number
	}
}

func (w *world) slave(of, at string) {
	w.t.Helper()
	w.mkdir("sys/devices/" + of + "/slaves")
	if err := os.Symlink(filepath.Join(w.dir, "sys/devices", at), filepath.Join(w.dir, "sys/devices", of, "slaves", filepath.Base(at))); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) disks() {
	w.block("virtual/block/ublkb0", "259", "0", [2]uint32{259, 0}, "/dev/ublkb0", "/dev/disk/by-id/x")
	w.block("virtual/block/ublkb0/ublkb0p1", "259", "1", [2]uint32{259, 1}, "/dev/ublkb0p1")
	w.write("sys/devices/virtual/block/ublkb0/ublkb0p1/partition", "1\n")
	w.block("virtual/block/ublkb1", "259", "2", [2]uint32{259, 2}, "/dev/ublkb1")
	w.block("virtual/block/dm-0", "253", "0", [2]uint32{253, 0}, "/dev/mapper/both")
	w.slave("virtual/block/dm-0", "virtual/block/ublkb0/ublkb0p1")
	w.slave("virtual/block/dm-0", "virtual/block/ublkb1")
	w.block("virtual/block/loop0", "7", "0", [2]uint32{7, 0}, "/dev/loop0")
	w.write("sys/devices/virtual/block/loop0/loop/backing_file", "/dev/ublkb1\n")
	// A circle, which no kernel makes.
	w.block("virtual/block/dm-1", "253", "1", [2]uint32{253, 1}, "/dev/mapper/circle")
	w.slave("virtual/block/dm-1", "virtual/block/dm-1")
}

func TestDisks(t *testing.T) {
	w := newWorld(t)
	w.disks()
	s := newScanner(w.roots(), nil)
	for path, want := range map[string][]string{
		"/dev/ublkb0": {"ublkb0"}, "/dev/disk/by-id/x": {"ublkb0"}, "/dev/ublkb0p1": {"ublkb0"},
		"/dev/mapper/both": {"dm-0", "ublkb0", "ublkb1"}, "/dev/loop0": {"loop0", "ublkb1"},
		"/dev/mapper/circle": {"dm-1"}, "/some/file": nil,
	} {
		if got, ok := s.disks(path); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v, want %v", path, got, ok, want)
		}
	}
}

// one is the picture of a single kind.
func (w *world) one(s *scanner) KindState {
	w.t.Helper()
	all := s.scan()
	if len(all) != 1 {
		w.t.Fatalf("%v", all)
	}
	return all[0]
}

func names(st KindState) (out []string) {
	for _, b := range st.Backings {
		out = append(out, b.Name+"="+b.Path+":"+strings.Join(b.Disks, ","))
	}
	return out
}

func (w *world) want(s *scanner, present bool, backings ...string) {
	w.t.Helper()
	st := w.one(s)
	if st.Err != nil || st.Present != present || !reflect.DeepEqual(names(st), backings) {
		w.t.Errorf("%+v, want present %v, %v", st, present, backings)
	}
}

func TestLIO(t *testing.T) {
	w := newWorld(t)
	w.disks()
	s := newScanner(w.roots(), []Kind{LIO})
	w.want(s, false)
	w.mkdir("config/target/core/alua/lu_gps")
	w.want(s, true)
	core := "config/target/core/"
	w.mkdir(core + "iblock_0/half") // only made
	w.write(core+"iblock_0/off/udev_path", "/dev/ublkb0\n")
	w.write(core+"iblock_0/off/enable", "0\n")
	w.want(s, true)
	w.write(core+"iblock_0/off/enable", "1\n")
	w.want(s, true, "iblock_0/off=/dev/ublkb0:ublkb0")
	// As plain echo into control leaves it.
	w.write(core+"iblock_1/b/udev_path", "")
	w.write(core+"iblock_1/b/enable", "1\n")
	w.write(core+"iblock_1/b/info", "Status: ACTIVATED  Max Queue Depth: 128  SectorSize: 512  HwMaxSectors: 1024\n        iBlock device: ublkb1  UDEV PATH: /dev/ublkb1  readonly: 0\n        Major: 259 Minor: 2  CLAIMED: IBLOCK\n")
	w.write(core+"iblock_2/c/enable", "1\n")
	w.write(core+"iblock_2/c/info", "        iBlock device: ublkb1  readonly: 0\n")
	w.write(core+"fileio_3/d/enable", "1\n")
	w.write(core+"fileio_3/d/info", "Status: ACTIVATED\n        TCM FILEIO ID: 0        File: /dev/mapper/both  Size: 1073741824  Mode: Buffered-WCE Async: 0\n")
	w.write(core+"rd_mcp_4/ram/enable", "1\n")
	w.write(core+"rd_mcp_4/ram/info", "        TCM RamDisk ID: 0  RAMDISK Makeup: rd_mcp  PAGES/PAGE_SIZE: 32768*4096\n")
	w.want(s, true, "fileio_3/d=/dev/mapper/both:dm-0,ublkb0,ublkb1", "iblock_0/off=/dev/ublkb0:ublkb0", "iblock_1/b=/dev/ublkb1:ublkb1", "iblock_2/c=/dev/ublkb1:ublkb1")
	w.remove(core + "iblock_0/off")
	w.remove(core + "fileio_3")
	w.remove(core + "iblock_2")
	w.want(s, true, "iblock_1/b=/dev/ublkb1:ublkb1")
	w.remove("config/target")
	w.want(s, false)
}

// TestHungPath has a target export a file in storage that hangs: the other backings are
// seen all the same, and what was known of that one stays.
func TestHungPath(t *testing.T) {
	w := newWorld(t)
	w.disks()
	hang, dead := make(chan struct{}), false
	r := w.roots()
	number, asked := r.Number, atomic.Int32{}
	r.Number = func(path string) (uint32, uint32, bool) {
		if path == "/dev/mapper/both" && dead {
			asked.Add(1)
			<-hang
		}
		return number(path)
	}
	s := newScanner(r, []Kind{SCST})
	w.write("scst_tgt/devices/a/filename", "/dev/mapper/both\n")
	w.want(s, true, "a=/dev/mapper/both:dm-0,ublkb0,ublkb1")
	dead = true
	w.write("scst_tgt/devices/b/filename", "/dev/ublkb1\n")
	for range 3 {
		w.want(s, true, "a=/dev/mapper/both:dm-0,ublkb0,ublkb1", "b=/dev/ublkb1:ublkb1")
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	w.write("scst_tgt/devices/a/filename", "/dev/ublkb0\n")
	w.want(s, true, "a=/dev/ublkb0:ublkb0", "b=/dev/ublkb1:ublkb1")
	close(hang)
}

func TestSCST(t *testing.T) {
	w := newWorld(t)
	w.disks()
	s := newScanner(w.roots(), []Kind{SCST})
	w.want(s, false)
	w.mkdir("scst_tgt/devices/fresh")
	w.write("scst_tgt/devices/disk1/filename", "/dev/ublkb0p1\n[key]\n")
	w.write("scst_tgt/devices/null/filename", "\n")
	w.want(s, true, "disk1=/dev/ublkb0p1:ublkb0")
	w.remove("scst_tgt/devices/disk1")
	w.want(s, true)
}

const tgtListing = `Target 1: iqn.2026-11.test:one
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
    LUN information:
        LUN: 0
            Type: controller
            SCSI ID: IET     00010000
            Backing store type: null
            Backing store path: None
            Backing store flags:
        LUN: 1
            Type: disk
            Backing store type: rdwr
            Backing store path: /dev/ublkb1
            Backing store flags:
    Account information:
    ACL information:
        ALL
Target 2: iqn.2026-11.test:two
    LUN information:
        LUN: 3
            Backing store path: /dev/loop0
`

func TestTgt(t *testing.T) {
	w := newWorld(t)
	w.disks()
	s := newScanner(w.roots(), []Kind{TGT})
	w.write("tgtadm", "#!/bin/sh\nexit 1\n")
	w.write("proc/net/unix", "Num       RefCount Protocol Flags    Type St Inode Path\n0000: 00000002 00000000 00010000 0001 01 1234 /run/dbus/system_bus_socket\n")
	w.want(s, false)
	w.write("proc/net/unix", strings.Repeat("0000: 00000002 00000000 00010000 0001 01 1 /run/x\n", 2000)+"0000: 00000002 00000000 00010000 0001 01 1234 /var/run/tgtd/socket.0\n")
	if st := w.one(s); st.Err == nil || !st.Present {
		t.Errorf("tgtadm fails: %+v", st)
	}
	w.write("tgtadm", "#!/bin/sh\ncat <<'EOF'\n"+tgtListing+"EOF\n")
	s.tgt.at = time.Time{}
	both := []string{"iqn.2026-11.test:one/1=/dev/ublkb1:ublkb1", "iqn.2026-11.test:two/3=/dev/loop0:loop0,ublkb1"}
	w.want(s, true, both...)
	w.want(s, true, both...) // from the cache
	// A failure keeps what was known: nobody is to drop a lease for it.
	w.write("tgtadm", "#!/bin/sh\nexit 1\n")
	s.tgt.at = time.Time{}
	if st := w.one(s); st.Err == nil || !st.Present || !reflect.DeepEqual(names(st), both) {
		t.Errorf("%+v", st)
	}
	w.write("proc/net/unix", "")
	w.want(s, false)
}

// TestUnreadable has a tree that can't be read: what was known stays.
func TestUnreadable(t *testing.T) {
	if unix.Geteuid() == 0 {
		// Root reads everything, so a directory stands where a file should be: EISDIR.
		w := newWorld(t)
		w.disks()
		s := newScanner(w.roots(), []Kind{LIO})
		w.write("config/target/core/iblock_0/a/enable", "1\n")
		w.write("config/target/core/iblock_0/a/udev_path", "/dev/ublkb0\n")
		w.want(s, true, "iblock_0/a=/dev/ublkb0:ublkb0")
		w.remove("config/target/core/iblock_0/a/enable")
		w.mkdir("config/target/core/iblock_0/a/enable")
		if st := w.one(s); !errors.Is(st.Err, unix.EISDIR) || len(st.Backings) != 1 {
			t.Errorf("%+v", st)
		}
	}
}

func TestWatch(t *testing.T) {
	w := newWorld(t)
	w.disks()
	w.mkdir("config/target/core")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	var seen []int
	done := make(chan struct{})
	go func() {
		defer close(done)
		Watch(ctx, w.roots(), []Kind{LIO}, time.Millisecond, func(states []KindState) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, len(states[0].Backings))
		})
	}()
	until := func(want ...int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			mu.Lock()
			got := append([]int(nil), seen...)
			mu.Unlock()
			if reflect.DeepEqual(got, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("told %v, want %v", got, want)
			}
		}
	}
	until(0)
	w.write("config/target/core/iblock_0/a/udev_path", "/dev/ublkb0\n")
	w.write("config/target/core/iblock_0/a/enable", "1\n")
	until(0, 1)
	time.Sleep(20 * time.Millisecond)
	until(0, 1) // and not again for the same
	w.remove("config/target/core/iblock_0/a/enable")
	until(0, 1, 0)
	cancel()
	<-done
}

func FuzzParse(f *testing.F) {
	f.Add(tgtListing)
	f.Add("        iBlock device: ublkb1  UDEV PATH: /dev/ublkb1  readonly: 0\n")
	f.Add("Backing store path: /dev/x\nLUN: 1\nBacking store path: \n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, b := range parseTgt(text) {
			if b.Path == "" || !strings.Contains(text, b.Path) || strings.Contains(b.Path, "\n") {
				t.Errorf("path %q", b.Path)
			}
		}
		if p := lioPath(text); strings.ContainsAny(p, " \n") {
			t.Errorf("path %q", p)
		}
	})
}
