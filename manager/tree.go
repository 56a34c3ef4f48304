package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/sysfs"
	"holdfast/sysfs/fusefs"
)

// treeName is the attribute tree's directory in the run directory.
const treeName = "sys"

// treeConsumer holds the lease that is taken by writing to standby_en.
const treeConsumer = "sysfs"

// tree is the attributes of all devices. It only ever asks what the API asks. To read never fails
// because a server is away, and waits for one as a list does; to write takes a server: EAGAIN if
// there is none, ETIMEDOUT if it doesn't answer.
type tree struct {
	root  *sysfs.Dir
	check *check
	peers *peers
	sys   string // /sys
}

func newTree(m *Manager) *tree {
	t := &tree{check: m.check, peers: m.peers, sys: m.cfg.sys}
	t.root = &sysfs.Dir{Entries: []sysfs.Entry{
		&sysfs.Dir{Name: "module", Entries: []sysfs.Entry{
			&sysfs.Dir{Name: "parameters", Entries: []sysfs.Entry{
				&sysfs.Attr{Name: "standby_check", Mode: 0o644,
					Show: func() (string, error) { return showSwitch(t.check.on()), nil },
					Store: func(v string) error {
						on, err := parseSwitch(v)
						if err != nil {
							return err
						}
						return attrError(t.check.byHand(on))
					}},
			}},
		}},
		&sysfs.Dir{Name: "block", More: t.blockEntries, One: t.blockEntry},
	}}
	return t
}

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

// disk is the kernel's name of a device's disk; "": it has none.
func (p *peer) disk() string {
	o := p.observation()
	if id, ok := o.number(); ok {
		return fmt.Sprintf("ublkb%d", id)
	}
	return ""
}

func (t *tree) blockEntries() []sysfs.Entry {
	var out []sysfs.Entry
	for _, p := range t.peers.list() {
		if disk := p.disk(); disk != "" {
			out = append(out, t.deviceDir(p.name), &sysfs.Link{Name: disk, Target: p.name})
		}
	}
	return out
}

func (t *tree) blockEntry(name string) sysfs.Entry {
	if p := t.peers.get(name); p != nil {
		if p.disk() != "" {
			return t.deviceDir(name)
		}
		return nil
	}
	if form := diskForm.FindStringSubmatch(name); form != nil {
		id, err := strconv.Atoi(form[1])
		if found := t.peers.numbered(id); err == nil && len(found) == 1 && fmt.Sprint(id) == form[1] {
			return &sysfs.Link{Name: name, Target: found[0]}
		}
	}
	return nil
}

// deviceDir is the directory of one device. Each attribute finds the device anew, so that
// one of a device that is gone says so.
func (t *tree) deviceDir(name string) *sysfs.Dir {
	show := func(attr string, value func(st *api.Device) string) *sysfs.Attr {
		return &sysfs.Attr{Name: attr, Mode: 0o444, Show: func() (string, error) {
			st, err := t.device(name)
			if err != nil {
				return "", attrError(err)
			}
			return value(st), nil
		}}
	}
	number := func(attr string, value func(st *api.Device) int64) *sysfs.Attr {
		return show(attr, func(st *api.Device) string { return strconv.FormatInt(value(st), 10) })
	}
	kernels := func(attr string) *sysfs.Attr {
		return &sysfs.Attr{Name: attr, Mode: 0o444, Show: func() (string, error) { return t.kernelAttr(name, attr) }}
	}
	rw := func(a *sysfs.Attr, store func(string) error) *sysfs.Attr {
		a.Mode, a.Store = 0o644, store
		return a
	}
	return &sysfs.Dir{Name: name, Entries: []sysfs.Entry{
		&sysfs.Dir{Name: "queue", Entries: []sysfs.Entry{
			rw(show("standby", func(st *api.Device) string { return st.Standby.Value }), func(v string) error { return t.storeStandby(name, v) }),
			rw(show("standby_en", func(st *api.Device) string { return showSwitch(st.Standby.Enabled) }), func(v string) error { return t.storeEnabled(name, v) }),
		}},
		&sysfs.Dir{Name: "image", Entries: []sysfs.Entry{
			show("deltas", func(st *api.Device) string {
				var paths []string
				for _, im := range st.Images {
					paths = append(paths, im.Path)
				}
				return strings.Join(paths, "\n")
			}),
			show("top", func(st *api.Device) string { return top(st).Path }),
			show("format", func(st *api.Device) string { return top(st).Format }),
			number("top_level", func(st *api.Device) int64 { return int64(len(st.Images) - 1) }),
			number("cluster_size", func(st *api.Device) int64 { return st.ClusterSize }),
			number("allocated", func(st *api.Device) int64 { return st.Allocated }),
			show("displaced", func(st *api.Device) string {
				var lines []string
				for _, d := range st.Displaced {
					lines = append(lines, fmt.Sprintf("%d %s", d.Level, d.How))
				}
				return strings.Join(lines, "\n")
			}),
		}},
		&sysfs.Dir{Name: "server", Entries: []sysfs.Entry{
			number("pid", func(st *api.Device) int64 { return int64(st.Server.PID) }),
			show("state", func(st *api.Device) string { return st.Server.State }),
			number("as_of", func(st *api.Device) int64 {
				if st.Server.AsOf.IsZero() {
					return 0
				}
				return st.Server.AsOf.Unix()
			}),
		}},
		number("size", func(st *api.Device) int64 { return st.Size / 512 }),
		show("ro", func(st *api.Device) string { return showSwitch(st.ReadOnly) }),
		show("state", func(st *api.Device) string { return st.State }),
		number("held", func(st *api.Device) int64 { return st.Standby.Held }),
		number("oldest", func(st *api.Device) int64 {
			if st.Oldest == nil {
				return 0
			}
			return int64(st.Oldest.Seconds)
		}),
		number("oldest_held", func(st *api.Device) int64 { return int64(st.Standby.HeldSeconds) }),
		show("standby_cause", func(st *api.Device) string { return st.Standby.Cause }),
		show("standby_consumers", func(st *api.Device) string { return strings.Join(st.Standby.Consumers, " ") }),
		show("resume", func(st *api.Device) string { return st.Standby.Resume }),
		show("recovery", func(st *api.Device) string { return st.Standby.Resume }), // what it was called before
		kernels("inflight"),
		kernels("stat"),
	}}
}

// top is the device's top image.
func top(dev *api.Device) api.ImageStatus {
	if n := len(dev.Images); n > 0 {
		return dev.Images[n-1]
	}
	return api.ImageStatus{}
}

// device is one that has a disk, without its users.
func (t *tree) device(name string) (*api.Device, error) {
	if p := t.peers.get(name); p != nil && p.disk() != "" {
		if dev := p.recent(context.Background()); dev != nil {
			return dev, nil
		}
	}
	return nil, api.Errorf(api.CodeNotFound, "there is no device %q", name)
}

// kernelAttr is what the kernel's own tree says of the device's disk.
func (t *tree) kernelAttr(name, attr string) (string, error) {
	disk := ""
	if p := t.peers.get(name); p != nil {
		disk = p.disk()
	}
	if disk == "" {
		return "", attrError(api.Errorf(api.CodeNotFound, "there is no device %q", name))
	}
	b, err := os.ReadFile(filepath.Join(t.sys, "block", disk, attr))
	text := strings.TrimSuffix(string(b), "\n")
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %w", err, unix.ENODEV)
	}
	return text, err
}

// writeTime is how long a server may take for what is written to an attribute: its record goes to
// the state directory.
const writeTime = 5

// command has a device's server do something, if there is one that answers.
func (t *tree) command(name string, do func(ctx context.Context, c *api.Client) error) error {
	p := t.peers.get(name)
	if p == nil {
		return attrError(api.Errorf(api.CodeNotFound, "there is no device %q", name))
	}
	ctx, cancel := context.WithTimeout(context.Background(), writeTime*t.peers.cfg.pace.ask)
	defer cancel()
	if err := p.awaitAnswer(ctx); err != nil || p.state() != api.ServerUp {
		return t.away(p)
	}
	defer p.outdate()
	err := do(ctx, p.client)
	if api.CodeOf(err) == api.CodeUnreachable && err != nil {
		p.ask(context.Background())
		if p.state() != api.ServerUp || ctx.Err() != nil {
			return t.away(p)
		}
	}
	return attrError(err)
}

// away is the error of a command that no server has taken, or none has answered.
func (t *tree) away(p *peer) error {
	switch p.state() {
	case api.ServerNone, api.ServerStarting:
		return fmt.Errorf("%w: %w", p.unreachable(), unix.EAGAIN)
	}
	return fmt.Errorf("%w: %w", p.unreachable(), unix.ETIMEDOUT)
}

// storeStandby takes on and off. off also puts a flag right that is left over.
func (t *tree) storeStandby(name, v string) error {
	v = strings.TrimSpace(v)
	if v != "on" && v != "off" {
		return fmt.Errorf("%q is neither on nor off: %w", v, unix.EINVAL)
	}
	return t.command(name, func(ctx context.Context, c *api.Client) error {
		_, err := c.SetStandby(ctx, name, v == "on")
		return err
	})
}

// storeEnabled takes and drops the tree's own lease.
func (t *tree) storeEnabled(name, v string) error {
	on, err := parseSwitch(v)
	if err != nil {
		return err
	}
	return t.command(name, func(ctx context.Context, c *api.Client) error {
		if on {
			_, err := c.Attach(ctx, name, treeConsumer)
			return err
		}
		if _, err := c.Detach(ctx, name, treeConsumer); err != nil && api.CodeOf(err) != api.CodeNotFound {
			return err
		}
		dev, err := c.BriefDevice(ctx, name)
		if err == nil && len(dev.Standby.Consumers) > 0 {
			err = api.Errorf(api.CodeBusy, "device %q: leases are held by %s", name, strings.Join(dev.Standby.Consumers, ", "))
		}
		return err
	})
}

// mountTree mounts the tree, where it can. That it can't keeps nothing else from working:
// 'holdfast attr' reads the same tree.
func (m *Manager) mountTree() {
	if m.cfg.NoTree {
		return
	}
	dir := filepath.Join(m.cfg.RunDir, treeName)
	server, err := fusefs.Mount(dir, m.tree.root, fusefs.Options{Name: "holdfast", Log: func(s string) { m.log.Warn().Msg(s) }})
	if err != nil {
		m.log.Warn().Msgf("the attribute tree is not mounted, 'holdfast attr' has it all the same: %v", err)
		return
	}
	m.mounted = server
	m.log.Info().Str("path", dir).Msg("attribute tree mounted")
}

// read reads an attribute, or lists a directory.
func (t *tree) read(path string) (*api.AttrInfo, error) {
	e, err := t.root.Lookup(path)
	if err != nil {
		return nil, attrFailure(err, false)
	}
	info := &api.AttrInfo{Path: path, Dir: e.Info().IsDir(), Entries: []api.AttrEntry{}}
	if !info.Dir {
		if info.Value, err = t.root.Read(path); err != nil {
			return nil, attrFailure(err, false)
		}
		return info, nil
	}
	list, err := t.root.List(path)
	if err != nil {
		return nil, attrFailure(err, false)
	}
	for _, i := range list {
		info.Entries = append(info.Entries, api.AttrEntry{Name: i.Name, Dir: i.IsDir(), Mode: i.Mode & 0o777, Target: i.Target})
	}
	return info, nil
}

// write writes to an attribute.
func (t *tree) write(path, value string) error {
	if err := t.root.Write(path, value); err != nil {
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
	case unix.EAGAIN, unix.ETIMEDOUT:
		code = api.CodeUnreachable
	case unix.EBUSY:
		code = api.CodeBusy
	case unix.EOPNOTSUPP:
		code = api.CodeNotSupported
	case unix.EINVAL, unix.EISDIR, unix.EACCES, unix.E2BIG:
		code = api.CodeInvalid
	}
	return api.Errorf(code, "%w", err)
}
