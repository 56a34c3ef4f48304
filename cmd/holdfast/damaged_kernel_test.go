package main

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestDamagedDevice serves what a damaged image still has: a read of what it has
// lost fails, all else goes on, with standby on and off.
func TestDamagedDevice(t *testing.T) {
	needKernel(t)
	d := newDir(t)
	disk := make([]byte, 4<<20)
	for i := range disk {
		disk[i] = byte(i>>20) + 1
	}
	d.write("in.raw", disk)
	d.ok("image", "convert", "raw@in.raw", "a.hds")
	d.poke("a.hds", 64+4*2, 77) // a cluster that the file doesn't have
	d.poke("a.hds", 48, 1)      // and a wrong place for the data
	d.daemon()
	d.fails(1, "--damaged", "create", "a", "--image", "a.hds", "--read-only")
	d.fails(2, "--read-only", "create", "a", "--image", "a.hds", "--damaged")
	path := strings.TrimSpace(d.ok("create", "a", "--image", "a.hds", "--read-only", "--damaged"))
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 4096)
	for _, standby := range []string{"off", "on"} {
		d.ok("standby-check", standby)
		if standby == "on" {
			d.ok("attach", "a", "--consumer", "test")
		}
		for i, lost := range []bool{false, false, true, false} {
			// Not from what an earlier turn has left in memory.
			syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, 4, 0, 0)
			_, err := f.ReadAt(p, int64(i)<<20)
			if lost != errors.Is(err, syscall.EIO) || !lost && (err != nil || p[0] != byte(i)+1) {
				t.Errorf("standby check %s, cluster %d: %v, %d", standby, i, err, p[0])
			}
		}
	}
	if out := d.ok("show", "a"); !strings.Contains(out, "damaged") || !strings.Contains(out, "live") {
		t.Error(out)
	}
}
