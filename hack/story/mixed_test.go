package story

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

// TestMixed: two devices on the same storage, one of them in a target. When the
// storage dies, that one holds; the other returns its errors at once, as it would
// without any standby in the world, and works again when the storage does.
func TestMixed(t *testing.T) {
	needVM(t)
	if testing.Short() {
		t.Skip("takes long: make soak")
	}
	g := needGluster(t)
	d := startDaemon(t)
	image := "/attached.hds"
	d.checkAfter(g.mounts[0] + image)
	attached := d.create("attached", g.mounts[0]+image)
	alone := d.create("alone", g.mounts[0]+"/alone.hds")

	f, err := os.OpenFile(alone, os.O_RDWR|syscall.O_DIRECT, 0)
	must(t, err)
	defer f.Close()
	want, got := aligned(4096), aligned(4096)
	copy(want, "there before")
	_, err = f.WriteAt(want, 1<<20)
	must(t, err)

	sd := login(t, exportLIO(t, "attached", attached))
	d.waitStandby("attached", "off")
	d.waitStandby("alone", "not supported") // though the key is on
	j := startFio(t, sd.Path, work{Size: roundSize / 2, Rate: 400, Depth: 16})
	d.waitWrites("attached", 100, j)
	g.kill(t)
	d.waitStandby("attached", "on")

	start := time.Now()
	for name, io := range map[string]func() (int, error){
		"read":             func() (int, error) { return f.ReadAt(got, 1<<20) },
		"write":            func() (int, error) { return f.WriteAt(want, 1<<20) },
		"allocating write": func() (int, error) { return f.WriteAt(want, 8<<20) },
	} {
		if _, err := io(); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s on the device without a consumer: %v, want EIO", name, err)
		}
	}
	t.Logf("three requests without a consumer failed within %v", since(start))
	if s := d.status("alone"); s.State != "live" || len(s.Gate) != 0 || s.Standby.Value != "not supported" || s.Standby.Held != 0 || s.Standby.Flag || s.Standby.Entered != 0 || s.Counters.Errors < 3 {
		t.Errorf("the device without a consumer was touched: %+v", s)
	}
	if s := d.waitHeld("attached", 1); s.HeldFailed != 0 || s.Value != "on" {
		t.Errorf("the device with a consumer: %+v", s)
	}

	g.revive(t, g.mounts[1])
	d.ok("replace", "attached", "--top", g.mounts[1]+image)
	if r := j.wait(10 * time.Minute); r.Error != 0 {
		t.Errorf("fio: %+v", r)
	}
	noErrors(t, sd)
	if err := wait(5*time.Minute, func() error { _, err := f.ReadAt(got, 1<<20); return err }); err != nil {
		t.Errorf("the device without a consumer stays dead: %v", err)
	} else if !bytes.Equal(got[:12], want[:12]) {
		t.Errorf("it reads %q", got[:12])
	}
}
