package ublk

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// shortenTimeout is what somebody else does for a server. The device is new, and idle.
func shortenTimeout(t *testing.T, c *Control, d *Device) {
	t.Helper()
	path, value, err := c.TimeoutAttr(t.Context(), d.ID())
	if err == nil && path != "" {
		err = os.WriteFile(path, []byte(value), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The time-out is to be set where the driver needs it, once, and not by the server: the kernel
// waits for the requests in flight even where nothing changes.
func TestTimeoutAttr(t *testing.T) {
	c := control(t)
	attr := func(d *Device) string {
		t.Helper()
		path, value, err := c.TimeoutAttr(t.Context(), d.ID())
		if err != nil || value == "" != (path == "") || path != "" && sysAttr(t, d, "queue/io_timeout") == value {
			t.Errorf("%q is to be written to %q (%v)", value, path, err)
		}
		return path
	}
	mortal := serve(t, c, Config{Size: 1 << 20}, newRAM(t, 1<<20, false))
	if path := attr(mortal); path != "" {
		t.Errorf("a device without recovery: %s", path)
	}
	h := &holder{}
	d := serve(t, c, Config{Size: 1 << 20, Recovery: RecoverReissue}, h)
	defer h.set(false)
	path := attr(d)
	if have, err := c.Features(t.Context()); err != nil || have.Has(FeatureQuiesce) == (path != "") {
		t.Errorf("on a driver with %v: %q (%v)", have, path, err)
	}
	if path == "" {
		return
	}
	shortenTimeout(t, c, d)
	if again := attr(d); again != "" || sysAttr(t, d, "queue/io_timeout") != "500" {
		t.Errorf("once more: %q", again)
	}

	f := openDirect(t, d, os.O_RDONLY)
	h.set(true)
	read := make(chan error, 1)
	b := aligned(t, 4096)
	go func() { _, err := f.ReadAt(b, 0); read <- err }()
	eventually(t, "the request is held", h.holds)
	other := exec.Command("/bin/sh", "-c", `echo 500 >"$0"`, path)
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "who writes the same value waits for the request", func() bool {
		stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", other.Process.Pid))
		return bytes.Contains(stack, []byte("blk_mq_freeze_queue_wait"))
	})
	h.set(false)
	if err := other.Wait(); err != nil {
		t.Error(err)
	}
	<-read
}
