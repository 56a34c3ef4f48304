package device

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/hack/faultfs"
	"holdfast/ploop"
)

// TestManyDevicesHoldAtOnce has 64 devices of one process go to standby at once, with 32 requests
// held by each, and resume: half by themselves, half by a replacement.
func TestManyDevicesHoldAtOnce(t *testing.T) {
	sharedOut(t, 0)
	ctl := openControl(t)
	const requests = 32
	devices := 64
	if testing.Short() {
		devices = 16
	}
	w := newTwoMounts(t, faultfs.Options{})
	key := newTestKey()
	key.Enable("test")
	type one struct {
		*Device
		aio *aio
	}
	var all []one
	for i := range devices {
		name := fmt.Sprint("top", i)
		if err := ploop.Create(filepath.Join(w.backing, name), ploop.CreateOptions{Size: 4 << 20, ClusterSize: 64 << 10}); err != nil {
			t.Fatal(err)
		}
		spec := api.Spec{Name: name, Images: refs(w.a, name), Queues: 1, Depth: requests, Resume: []string{api.ResumeManual, api.ResumeReopen}[i%2]}
		d, err := Open(t.Context(), spec, Options{Control: ctl, Key: key.Switch})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close(context.Background(), true) })
		if err := d.Attach("test"); err != nil {
			t.Fatal(err)
		}
		o := one{d, newAIO(t, openDisk(t, d), requests)}
		for b := range uint64(requests) {
			o.aio.submit(iocbWrite, b*32, 1) // in many clusters
		}
		all = append(all, o)
	}
	for _, o := range all {
		if n := o.aio.all(); n != 0 {
			t.Fatalf("%s: %d writes failed", o.Spec().Name, n)
		}
	}
	w.a.Dead(unix.ENOTCONN)
	for _, o := range all {
		for b := range uint64(requests) {
			o.aio.submit(iocbWrite, b*32, 2)
		}
	}
	for _, o := range all {
		eventually(t, "all held", func() bool { s := o.Status().Standby; return s.Value == "on" && s.Held == requests })
		if n := o.aio.ended(); n != requests {
			t.Errorf("%s: %d requests ended in standby", o.Spec().Name, requests-n)
		}
		if s := o.Status().Standby; s.Held != s.Tags || s.Entered != 1 {
			t.Errorf("%s: %+v", o.Spec().Name, s)
		}
	}
	// One mount comes back for those that wait for it, another one is there for the rest.
	w.a.Dead(0)
	replaced := make(chan error, devices)
	n := 0
	for _, o := range all {
		if spec := o.Spec(); spec.Resume == api.ResumeManual {
			n++
			go func() {
				replaced <- o.Replace(context.Background(), Replace{Level: -1, Image: refs(w.b, spec.Name)[0]})
			}()
		}
	}
	for range n {
		if err := <-replaced; err != nil {
			t.Error(err)
		}
	}
	for _, o := range all {
		if n := o.aio.all(); n != 0 {
			t.Errorf("%s: %d held writes failed", o.Spec().Name, n)
		}
		for b := range uint64(requests) {
			if err := o.aio.fd.expect(b*32, 2); err != nil {
				t.Error(err)
			}
		}
		s := o.Status()
		if s.State != api.StateLive || s.Standby.Resumed != 1 || s.Standby.HeldFailed != 0 || s.Standby.Held != 0 || s.Counters.InFlight != 0 {
			t.Errorf("%s: %s, %+v", s.Name, s.State, s.Standby)
		}
	}
}

// TestOnlyTheAttachedHolds has two devices on one dead mount, and only one with a lease.
func TestOnlyTheAttachedHolds(t *testing.T) {
	sharedOut(t, 0)
	ctl := openControl(t)
	for _, errno := range []unix.Errno{unix.EBUSY, unix.ENOTCONN, unix.EIO} {
		w := newTwoMounts(t, faultfs.Options{})
		var fds [2]rawDisk
		var devices [2]*standbyFixture
		for i, name := range []string{"attached", "not"} {
			if err := ploop.Create(filepath.Join(w.backing, name), ploop.CreateOptions{Size: 4 << 20, ClusterSize: 64 << 10}); err != nil {
				t.Fatal(err)
			}
			devices[i] = serveStandby(t, ctl, api.Spec{Name: name, Images: refs(w.a, name)})
			devices[i].key.Enable("test")
			fds[i] = openDisk(t, devices[i].Device)
			if err := fds[i].write(0, 1); err != nil {
				t.Fatal(err)
			}
		}
		if err := devices[0].Attach("test"); err != nil {
			t.Fatal(err)
		}
		w.a.Dead(errno)
		held := make(chan error, 1)
		go func() { held <- fds[0].write(0, 2) }()
		devices[0].until("standby", standbyOn)
		for name, err := range map[string]error{"write": fds[1].write(0, 2), "read": fds[1].expect(0, 1), "flush": fds[1].flush(), "allocation": fds[1].write(100, 2)} {
			if err == nil {
				t.Errorf("%v: %s without a lease succeeded", errno, name)
			}
		}
		if s := devices[1].Status(); s.State != api.StateLive || s.Standby.Value != "not supported" || s.Standby.Flag || s.Standby.HeldTotal+s.Standby.Entered != 0 {
			t.Errorf("%v: the device without a lease: %+v", errno, s.Standby)
		}
		w.a.Dead(0)
		if err := fds[1].write(0, 3); err != nil {
			t.Errorf("%v: the storage is back: %v", errno, err)
		}
		// Emulated storage may be too slow for the probe, and the held request has to come back.
		eventually(t, "the replacement", func() bool {
			err := devices[0].Replace(t.Context(), Replace{Level: -1, Image: refs(w.b, "attached")[0]})
			if err != nil {
				t.Log(err)
			}
			return err == nil
		})
		if err := <-held; err != nil {
			t.Errorf("%v: held: %v", errno, err)
		}
		if err := errors.Join(fds[0].expect(0, 2), fds[1].expect(0, 3)); err != nil {
			t.Error(err)
		}
	}
}
