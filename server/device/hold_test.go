package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/ublk"
)

// disk is storage that can die: a device-mapper target over a loop device, which is
// exchanged for one that answers EIO, and back.
type disk struct {
	t     *testing.T
	name  string
	path  string
	table string
}

const diskSectors = 32 << 11

func newDisk(t *testing.T, name string) *disk {
	t.Helper()
	for _, m := range []string{"loop", "dm_mod"} {
		exec.Command("modprobe", m).Run() // may be built in
	}
	back := filepath.Join(t.TempDir(), "back")
	if err := os.WriteFile(back, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(back, diskSectors<<9); err != nil {
		t.Fatal(err)
	}
	loop := strings.TrimSpace(run(t, "losetup", "-f", "--show", back))
	t.Cleanup(func() { run(t, "losetup", "-d", loop) })
	d := &disk{t: t, name: "hf-" + name, table: fmt.Sprintf("0 %d linear %s 0", diskSectors, loop)}
	run(t, "dmsetup", "create", d.name, "--noudevsync", "--table", d.table)
	t.Cleanup(func() { run(t, "dmsetup", "remove", "--noudevsync", "--retry", d.name) })
	// The kernel's own node: /dev/mapper is udev's, who may not be there.
	d.path = "/dev/dm-" + strings.TrimSpace(run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "minor", d.name))
	return d
}

func (d *disk) ref() ploop.ImageRef { return ploop.ImageRef{Path: d.path, Raw: true} }

func (d *disk) load(table string) {
	d.t.Helper()
	run(d.t, "dmsetup", "suspend", "--noudevsync", "--noflush", "--nolockfs", d.name)
	run(d.t, "dmsetup", "load", d.name, "--table", table)
	run(d.t, "dmsetup", "resume", "--noudevsync", d.name)
}

func (d *disk) die()    { d.t.Helper(); d.load(fmt.Sprintf("0 %d error", diskSectors)) }
func (d *disk) revive() { d.t.Helper(); d.load(d.table) }

// held is a device under test with its key, and what happened to it.
type standbyFixture struct {
	*Device
	t    *testing.T
	key  *testKey
	mu   sync.Mutex
	seen []string
}

func serveStandby(t *testing.T, ctl *ublk.Control, spec api.Spec) *standbyFixture {
	t.Helper()
	f := &standbyFixture{t: t, key: newTestKey()}
	d, err := Open(t.Context(), spec, Options{Control: ctl, Key: f.key.Switch, Log: zerolog.New(zerolog.NewTestWriter(t)),
		Event: func(e api.Event) { f.mu.Lock(); f.seen = append(f.seen, e.Kind); f.mu.Unlock() }})
	if err != nil {
		t.Fatal(err)
	}
	f.Device = d
	t.Cleanup(func() { d.Close(context.Background(), true) })
	return f
}

// arm turns both fuses on.
func (f *standbyFixture) arm() *standbyFixture {
	f.key.Enable("test")
	if err := f.Attach("test"); err != nil {
		f.t.Fatal(err)
	}
	return f
}

func (f *standbyFixture) until(what string, ok func(s api.Status) bool) {
	f.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(f.Status()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("waited in vain: %s; %+v", what, f.Status())
		}
	}
}

func (f *standbyFixture) untilEvent(kind string) {
	f.t.Helper()
	f.until("event "+kind, func(api.Status) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Contains(f.seen, kind)
	})
}

// write begins n writes of 4 KiB, past the page cache, and tells the errors.
func (f *standbyFixture) write(n int, fill byte) <-chan error {
	f.t.Helper()
	ended := make(chan error, n)
	for i := range n {
		go func() {
			fd, err := unix.Open(f.Path(), unix.O_RDWR|unix.O_DIRECT, 0)
			if err != nil {
				ended <- err
				return
			}
			defer unix.Close(fd)
			b := ploop.AlignedBuffer(4096)
			for k := range b {
				b[k] = fill
			}
			_, err = unix.Pwrite(fd, b, int64(i)*8192)
			ended <- err
		}()
	}
	return ended
}

// read looks at what write wrote.
func (f *standbyFixture) read(n int, fill byte) {
	f.t.Helper()
	fd, err := unix.Open(f.Path(), unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	defer unix.Close(fd)
	b := ploop.AlignedBuffer(4096)
	for i := range n {
		if _, err := unix.Pread(fd, b, int64(i)*8192); err != nil {
			f.t.Fatal(err)
		}
		if i := slices.IndexFunc(b, func(c byte) bool { return c != fill }); i >= 0 {
			f.t.Fatalf("block %d has %d at %d, want %d", i, b[i], i, fill)
		}
	}
}

func all(t *testing.T, ended <-chan error, want error) {
	t.Helper()
	for range cap(ended) {
		select {
		case err := <-ended:
			if !errors.Is(err, want) {
				t.Errorf("a request ended with %v, want %v", err, want)
			}
		case <-time.After(time.Minute):
			t.Fatal("a request doesn't end")
		}
	}
}

func standbyOn(s api.Status) bool { return s.Standby.Value == "on" && s.State == api.StateStandby }

// TestHoldEnds has the storage of a device die and come back in every way that a hold can end.
func TestHoldEnds(t *testing.T) {
	ctl := openControl(t)
	const n = 16
	for _, path := range dataPathsOf(t, ctl) {
		for i, c := range []struct {
			name string
			spec func(*api.Spec)
			// end ends the hold; revived says that the storage is back.
			end  func(t *testing.T, f *standbyFixture, d *disk)
			want error // of what was held
			kind string
		}{
			{"reopen", func(s *api.Spec) { s.Resume = api.ResumeReopen }, func(t *testing.T, f *standbyFixture, d *disk) { d.revive() }, nil, api.EventResumed},
			{"replace", nil, func(t *testing.T, f *standbyFixture, d *disk) {
				d.revive()
				if err := f.Replace(t.Context(), Replace{Level: -1, Image: d.ref()}); err != nil {
					t.Fatal(err)
				}
			}, nil, api.EventReplaced},
			{"off by hand", nil, func(t *testing.T, f *standbyFixture, d *disk) {
				if err := f.SetStandby(false); err != nil {
					t.Fatal(err)
				}
			}, unix.EIO, api.EventCleared},
			{"detach", nil, func(t *testing.T, f *standbyFixture, d *disk) { f.Detach("test") }, unix.EIO, api.EventInconsistency},
			{"detach with the storage back", nil, func(t *testing.T, f *standbyFixture, d *disk) { d.revive(); f.Detach("test") }, nil, api.EventInconsistency},
			{"key off", nil, func(t *testing.T, f *standbyFixture, d *disk) { f.key.Disable("test") }, unix.EIO, api.EventInconsistency},
			{"time-out", func(s *api.Spec) { s.StandbyTimeout = api.Duration(time.Second) }, func(*testing.T, *standbyFixture, *disk) {}, unix.EIO, api.EventTimeout},
			{"removal", nil, func(t *testing.T, f *standbyFixture, d *disk) {
				// Whether a raw image closes cleanly depends on what was dirty.
				_ = f.Close(t.Context(), true)
			}, unix.EIO, api.EventRemoved},
		} {
			if onOtherKernel(i) {
				continue
			}
			t.Run(path+"/"+c.name, func(t *testing.T) {
				d := newDisk(t, strings.ReplaceAll(path+"-"+c.name, " ", "-"))
				spec := api.Spec{Name: "hold", Images: []ploop.ImageRef{d.ref()}, DataPath: path}
				if c.spec != nil {
					c.spec(&spec)
				}
				f := serveStandby(t, ctl, spec).arm()
				all(t, f.write(n, 1), nil)
				d.die()
				ended := f.write(n, 2)
				f.until("all held", func(s api.Status) bool { return standbyOn(s) && s.Standby.Held == n })
				if s := f.Status().Standby; s.Errno != "EIO" || s.Entered != 1 || s.Triggers["EIO"] == 0 || s.Since == nil {
					t.Errorf("%+v", s)
				}
				select {
				case err := <-ended:
					t.Fatalf("a request ended in standby: %v", err)
				default:
				}
				c.end(t, f, d)
				all(t, ended, c.want)
				f.untilEvent(c.kind)
				if c.name == "removal" {
					d.revive()
					return
				}
				if s := f.Status().Standby; s.Held != 0 {
					t.Errorf("%d are still held", s.Held)
				}
				if c.want == nil {
					f.read(n, 2)
					return
				}
				if c.name == "time-out" {
					all(t, f.write(1, 2), unix.EIO) // at once
					d.revive()
					if err := f.Replace(t.Context(), Replace{Level: -1, Image: d.ref()}); err != nil {
						t.Fatal(err)
					}
				}
				d.revive()
				f.SetStandby(false)
				all(t, f.write(n, 3), nil)
				f.read(n, 3)
			})
		}
	}
}

// TestFusesOff has each fuse off: errors pass through, and nothing is touched.
func TestFusesOff(t *testing.T) {
	ctl := openControl(t)
	for i, c := range []struct {
		name    string
		prepare func(f *standbyFixture)
	}{
		{"neither", func(*standbyFixture) {}},
		{"other set", func(f *standbyFixture) { f.arm() }},
		{"key only", func(f *standbyFixture) { f.key.Enable("test") }},
		{"lease", func(f *standbyFixture) { f.Attach("test") }},
	} {
		if onOtherKernel(i) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			d := newDisk(t, "off-"+strings.ReplaceAll(c.name, " ", "-"))
			spec := api.Spec{Name: "off", Images: []ploop.ImageRef{d.ref()}}
			if c.name == "other set" {
				spec.StandbyErrors = []string{"ENOTCONN", "ESTALE"}
			}
			f := serveStandby(t, ctl, spec)
			c.prepare(f)
			d.die()
			all(t, f.write(8, 1), unix.EIO)
			if s := f.Status(); s.State != api.StateLive || s.Standby.Flag || s.Standby.HeldTotal != 0 || s.Standby.Entered != 0 {
				t.Errorf("%+v", s)
			}
			d.revive()
			all(t, f.write(8, 2), nil)
			f.read(8, 2)
		})
	}
}

// TestAttachedHoldsTheOtherFails has two devices on one dead storage: the one with a consumer
// holds, the other gets its errors and is not touched.
func TestAttachedHoldsTheOtherFails(t *testing.T) {
	sharedOut(t, 0)
	ctl := openControl(t)
	d := newDisk(t, "mixed")
	fs := t.TempDir()
	run(t, "mkfs.ext4", "-q", d.ref().Path)
	run(t, "mount", d.ref().Path, fs)
	t.Cleanup(func() { unix.Unmount(fs, unix.MNT_DETACH) })
	held := serveStandby(t, ctl, api.Spec{Name: "a", Images: makeStack(t, mkdir(t, fs, "a"), 1, 2, 4<<20, 1<<20)}).arm()
	other, err := Open(t.Context(), api.Spec{Name: "b", Images: makeStack(t, mkdir(t, fs, "b"), 1, 2, 4<<20, 1<<20)}, Options{Control: ctl, Key: held.key.Switch})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close(context.Background(), true) })
	b := &standbyFixture{Device: other, t: t, key: held.key}
	all(t, held.write(8, 1), nil)
	all(t, b.write(8, 1), nil)
	d.die()
	waiting := held.write(8, 2)
	held.until("standby", standbyOn)
	for range cap(waiting) / 2 {
		all(t, b.write(1, 2), unix.EIO)
	}
	if s := b.Status(); s.Standby.Value != "not supported" || s.Standby.HeldTotal != 0 || s.State != api.StateLive {
		t.Errorf("the other device: %+v", s)
	}
	d.revive()
	if err := held.Replace(t.Context(), Replace{Level: -1, Image: held.Spec().Images[0]}); err != nil {
		t.Fatal(err)
	}
	all(t, waiting, nil)
	held.read(8, 2)
}

func mkdir(t *testing.T, at, name string) string {
	t.Helper()
	dir := filepath.Join(at, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
