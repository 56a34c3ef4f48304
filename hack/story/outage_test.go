package story

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/api"
)

// attribute reads one of a device's attributes as a shell would, from the
// mounted tree.
func (d *daemon) attribute(name, attr string) (string, error) {
	text, err := os.ReadFile(d.dir + "/run/sys/block/" + name + "/" + attr)
	return strings.TrimSpace(string(text)), err
}

// standby is the attribute that says whether a device holds. Without a daemon there is no tree.
func (d *daemon) standby(name string) (string, error) {
	if !d.ended {
		return d.attribute(name, "queue/standby")
	}
	return d.status(name).Standby.Value, nil
}

// waitStandby waits until a device's attribute has a value.
func (d *daemon) waitStandby(name, want string) {
	d.t.Helper()
	if err := wait(5*time.Minute, func() error {
		got, err := d.standby(name)
		if err == nil && got != want {
			err = fmt.Errorf("standby of %s reads %q, want %q", name, got, want)
		}
		return err
	}); err != nil {
		d.t.Fatalf("%v: %+v", err, d.status(name).Standby)
	}
}

// waitWrites waits until a device has done some more writes than at the call, so
// that work is under way whatever the machine's speed.
func (d *daemon) waitWrites(name string, more int, j *job) {
	d.t.Helper()
	want := d.status(name).Counters.Writes + uint64(more)
	if err := wait(5*time.Minute, func() error {
		if j.ended.Load() {
			d.t.Fatalf("fio ended before anything happened: %+v", j.wait(0))
		}
		if got := d.status(name).Counters.Writes; got < want {
			return fmt.Errorf("%s has done %d writes, waiting for %d", name, got, want)
		}
		return nil
	}); err != nil {
		d.t.Fatal(err)
	}
}

// waitHeld waits for a device to hold requests.
func (d *daemon) waitHeld(name string, least int64) api.StandbyStatus {
	d.t.Helper()
	var s api.StandbyStatus
	if err := wait(time.Minute, func() error {
		if s = d.status(name).Standby; s.Held < least {
			return fmt.Errorf("%s holds %d requests, want %d", name, s.Held, least)
		}
		return nil
	}); err != nil {
		d.t.Fatalf("%v: %+v", err, s)
	}
	return s
}

// firstError watches a mount by reads that go to the bricks, and tells the time
// of the first that fails.
func firstError(t *testing.T, mount string) (when func() time.Time) {
	t.Helper()
	must(t, answers(mount))
	fd, err := syscall.Open(mount+"/probe", syscall.O_RDONLY|syscall.O_DIRECT|syscall.O_CLOEXEC, 0)
	must(t, err)
	var once sync.Once
	stop, done := make(chan struct{}), make(chan struct{})
	var at time.Time
	go func() {
		defer close(done)
		defer syscall.Close(fd)
		buf := aligned(4096)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := syscall.Pread(fd, buf, 0); err != nil {
				at = time.Now()
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	end := func() { once.Do(func() { close(stop) }) }
	t.Cleanup(end)
	return func() time.Time {
		select {
		case <-done:
		case <-time.After(time.Minute):
			end()
			t.Fatalf("%s answers without bricks", mount)
		}
		return at
	}
}

// noErrors fails the test if the initiator has seen an error.
func noErrors(t *testing.T, sd *initiatorDisk) {
	t.Helper()
	if lines := sd.kernelErrors(t); len(lines) != 0 {
		t.Errorf("the initiator's kernel has seen errors:\n%s", strings.Join(lines, "\n"))
	}
}
