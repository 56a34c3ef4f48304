package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/standby"
	"holdfast/sysfs"
	"holdfast/sysfs/fusefs"
)

// treeName is the attribute tree's directory in the run directory.
const treeName = "sys"

// treeConsumer holds the lease that is taken by writing to standby_en.
const treeConsumer = "sysfs"

// attrError gives an error the number that a writer of an attribute gets.
func attrError(err error) error {
	var number unix.Errno
	switch api.CodeOf(err) {
	case api.CodeBusy:
		number = unix.EBUSY
	case api.CodeNotFound:
		number = unix.ENODEV
	case api.CodeNotSupported:
		number = unix.EOPNOTSUPP
	case api.CodeInvalid:
		number = unix.EINVAL
	default:
		number = unix.EIO
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", err, number)
}

// parseSwitch takes 0 and 1.
func parseSwitch(v string) (bool, error) {
	switch strings.TrimSpace(v) {
	case "0":
		return false, nil
	case "1":
		return true, nil
	}
	return false, fmt.Errorf("%q is neither 0 nor 1: %w", v, unix.EINVAL)
}

func showSwitch(on bool) string {
	if on {
		return "1"
	}
	return "0"
}

// tree makes the attribute tree. It only ever asks what the API asks.
func (d *Daemon) tree() *sysfs.Dir {
	return &sysfs.Dir{Entries: []sysfs.Entry{
		&sysfs.Dir{Name: "module", Entries: []sysfs.Entry{
			&sysfs.Dir{Name: "parameters", Entries: []sysfs.Entry{
				&sysfs.Attr{Name: "standby_check", Mode: 0o644,
					Show: func() (string, error) { return showSwitch(d.check.On()), nil },
					Store: func(v string) error {
						on, err := parseSwitch(v)
						if err != nil {
							return err
						}
						_, err = d.SetKey(on)
						return attrError(err)
					}},
			}},
		}},
		&sysfs.Dir{Name: "block", More: d.blockEntries, One: d.blockEntry},
	}}
}

// lives are the devices that are served, by name.
func (d *Daemon) lives() map[string]live {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := map[string]live{}
	for name, s := range d.slots {
		if s.dev != nil {
			m[name] = s.dev
		}
	}
	return m
}

// disks are the kernel's names of devices that are served, or wait to be, by name.
func (d *Daemon) disks() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := map[string]string{}
	for name, s := range d.slots {
		if disk := s.disk(); disk != "" {
			m[name] = disk
		}
	}
	return m
}

// diskOf is one of disks; "": there is none.
func (d *Daemon) diskOf(name string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.slots[name]; s != nil {
		return s.disk()
	}
	return ""
}

// disk is the kernel's name of the slot's disk, "" while there is none. Daemon.mu is held.
func (s *slot) disk() string {
	switch {
	case s.dev != nil:
		return filepath.Base(s.dev.Path())
	case s.rec != nil && s.phase == api.StateRecovering:
		return fmt.Sprintf("ublkb%d", s.rec.ID)
	}
	return ""
}

func (d *Daemon) blockEntries() []sysfs.Entry {
	var out []sysfs.Entry
	for name, disk := range d.disks() {
		out = append(out, d.deviceDir(name), &sysfs.Link{Name: disk, Target: name})
	}
	return out
}

func (d *Daemon) blockEntry(name string) sysfs.Entry {
	if d.diskOf(name) != "" {
		return d.deviceDir(name)
	}
	if n, err := d.resolve(name); err == nil && d.diskOf(n) == name {
		return &sysfs.Link{Name: name, Target: n}
	}
	return nil
}

// deviceDir is the directory of one device. Each attribute finds the device anew, so that
// one of a device that is gone says so.
func (d *Daemon) deviceDir(name string) *sysfs.Dir {
	show := func(attr string, value func(st *api.Status) string) *sysfs.Attr {
		return &sysfs.Attr{Name: attr, Mode: 0o444, Show: func() (string, error) {
			st, err := d.status(name)
			if err != nil {
				return "", attrError(err)
			}
			return value(st), nil
		}}
	}
	number := func(attr string, value func(st *api.Status) int64) *sysfs.Attr {
		return show(attr, func(st *api.Status) string { return strconv.FormatInt(value(st), 10) })
	}
	kernels := func(attr string) *sysfs.Attr {
		return &sysfs.Attr{Name: attr, Mode: 0o444, Show: func() (string, error) { return d.kernelAttr(name, attr) }}
	}
	rw := func(a *sysfs.Attr, store func(string) error) *sysfs.Attr {
		a.Mode, a.Store = 0o644, store
		return a
	}
	return &sysfs.Dir{Name: name, Entries: []sysfs.Entry{
		&sysfs.Dir{Name: "queue", Entries: []sysfs.Entry{
			rw(show("standby", func(st *api.Status) string { return st.Standby.Value }), func(v string) error { return d.storeStandby(name, v) }),
			rw(show("standby_en", func(st *api.Status) string { return showSwitch(st.Standby.Enabled) }), func(v string) error { return d.storeEnabled(name, v) }),
		}},
		&sysfs.Dir{Name: "image", Entries: []sysfs.Entry{
			show("deltas", func(st *api.Status) string {
				var paths []string
				for _, im := range st.Images {
					paths = append(paths, im.Path)
				}
				return strings.Join(paths, "\n")
			}),
			show("top", func(st *api.Status) string { return st.Images[len(st.Images)-1].Path }),
			show("format", func(st *api.Status) string { return st.Images[len(st.Images)-1].Format }),
			number("top_level", func(st *api.Status) int64 { return int64(len(st.Images) - 1) }),
			number("cluster_size", func(st *api.Status) int64 { return st.ClusterSize }),
			number("allocated", func(st *api.Status) int64 { return st.Allocated }),
			show("displaced", func(st *api.Status) string {
				var lines []string
				for _, d := range st.Displaced {
					lines = append(lines, fmt.Sprintf("%d %s", d.Level, d.How))
				}
				return strings.Join(lines, "\n")
			}),
		}},
		number("size", func(st *api.Status) int64 { return st.Size / 512 }),
		show("ro", func(st *api.Status) string { return showSwitch(st.ReadOnly) }),
		show("state", func(st *api.Status) string { return st.State }),
		number("held", func(st *api.Status) int64 { return st.Standby.Held }),
		number("oldest", func(st *api.Status) int64 {
			if st.Oldest == nil {
				return 0
			}
			return int64(st.Oldest.Seconds)
		}),
		number("oldest_held", func(st *api.Status) int64 { return int64(st.Standby.HeldSeconds) }),
		show("standby_cause", func(st *api.Status) string { return st.Standby.Cause }),
		show("standby_consumers", func(st *api.Status) string { return strings.Join(st.Standby.Consumers, " ") }),
		show("recovery", func(st *api.Status) string { return st.Standby.Recovery }),
		kernels("inflight"),
		kernels("stat"),
	}}
}

// status is a device's, without its users.
func (d *Daemon) status(name string) (*api.Status, error) {
	var st api.Status
	d.mu.Lock()
	s := d.slots[name]
	waits := s != nil && s.rec != nil && s.dev == nil && s.phase == api.StateRecovering
	if waits {
		st = s.rec.Waiting(s.waitState(), d.check.On())
	}
	d.mu.Unlock()
	if waits {
		return &st, nil
	}
	err := d.withDevice(name, func(_ *slot, dev live) error { st = dev.Status(); return nil })
	return &st, err
}

// statuses are those of all that have a disk, asked for at once: one that has to wait holds up
// no other.
func (d *Daemon) statuses() []*api.Status {
	var out []*api.Status
	var mu sync.Mutex
	var asked sync.WaitGroup
	for name := range d.disks() {
		asked.Go(func() {
			st, err := d.status(name)
			if err != nil {
				return // gone meanwhile
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, st)
		})
	}
	asked.Wait()
	return out
}

// kernelAttr is what the kernel's own tree says of the device's disk.
func (d *Daemon) kernelAttr(name, attr string) (string, error) {
	var text string
	disk := d.diskOf(name)
	if disk == "" {
		return "", attrError(api.Errorf(api.CodeNotFound, "there is no device %q", name))
	}
	b, err := os.ReadFile(filepath.Join(d.cfg.sysRoot(), "block", disk, attr))
	text = strings.TrimSuffix(string(b), "\n")
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %w", err, unix.ENODEV)
	}
	return text, err
}

// storeStandby takes on and off. off also puts a flag right that is left over.
func (d *Daemon) storeStandby(name, v string) error {
	switch strings.TrimSpace(v) {
	case "on":
		_, err := d.SetStandby(name, true)
		return attrError(err)
	case "off":
		_, err := d.SetStandby(name, false)
		return attrError(err)
	}
	return fmt.Errorf("%q is neither on nor off: %w", v, unix.EINVAL)
}

// storeEnabled takes and drops the tree's own lease.
func (d *Daemon) storeEnabled(name, v string) error {
	on, err := parseSwitch(v)
	if err != nil {
		return err
	}
	if on {
		_, err = d.Attach(context.Background(), name, treeConsumer)
		return attrError(err)
	}
	err = d.withDevice(name, func(s *slot, dev live) error {
		if err := d.dropLease(s, dev, treeConsumer); err != nil && !errors.Is(err, standby.ErrNotAttached) {
			return err
		}
		if others := dev.Status().Standby.Consumers; len(others) > 0 {
			return api.Errorf(api.CodeBusy, "device %q: leases are held by %s", name, strings.Join(others, ", "))
		}
		return nil
	})
	return attrError(err)
}

// mountTree mounts the tree, where it can. That it can't keeps nothing else from working:
// 'holdfast attr' reads the same tree.
func (d *Daemon) mountTree() {
	if d.cfg.NoTree {
		return
	}
	dir := filepath.Join(d.cfg.RunDir, treeName)
	server, err := fusefs.Mount(dir, d.root, fusefs.Options{Name: "holdfast", Log: func(s string) { d.log.Warn().Msg(s) }})
	if err != nil {
		d.log.Warn().Msgf("the attribute tree is not mounted, 'holdfast attr' has it all the same: %v", err)
		return
	}
	d.treeServer = server
	d.log.Info().Str("path", dir).Msg("attribute tree mounted")
}

// Attr reads an attribute, or lists a directory.
func (d *Daemon) Attr(path string) (*api.AttrInfo, error) {
	e, err := d.root.Lookup(path)
	if err != nil {
		return nil, attrFailure(err, false)
	}
	info := &api.AttrInfo{Path: path, Dir: e.Info().IsDir(), Entries: []api.AttrEntry{}}
	if !info.Dir {
		if info.Value, err = d.root.Read(path); err != nil {
			return nil, attrFailure(err, false)
		}
		return info, nil
	}
	list, err := d.root.List(path)
	if err != nil {
		return nil, attrFailure(err, false)
	}
	for _, i := range list {
		info.Entries = append(info.Entries, api.AttrEntry{Name: i.Name, Dir: i.IsDir(), Mode: i.Mode & 0o777, Target: i.Target})
	}
	return info, nil
}

// SetAttr writes to an attribute.
func (d *Daemon) SetAttr(path, value string) error {
	if err := d.root.Write(path, value); err != nil {
		return attrFailure(err, true)
	}
	return nil
}

// attrFailure gives an error of the tree its code.
func attrFailure(err error, write bool) error {
	code := api.CodeInternal
	switch sysfs.Errno(err, write) {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENODEV:
		code = api.CodeNotFound
	case unix.EBUSY:
		code = api.CodeBusy
	case unix.EOPNOTSUPP:
		code = api.CodeNotSupported
	case unix.EINVAL, unix.EISDIR, unix.EACCES, unix.E2BIG:
		code = api.CodeInvalid
	}
	return api.Errorf(code, "%w", err)
}
