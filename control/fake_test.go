package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/manager/target"
	"holdfast/ploop"
	"holdfast/server/device"
	"holdfast/standby"
	"holdfast/state"
	"holdfast/ublk"
)

// fakeKernel serves devices that are only numbers. It fails the test when the
// daemon breaks its promises: a device is opened only under a record that says
// so, and never one whose images are open already.
type fakeKernel struct {
	t        *testing.T
	stateDir string

	mu       sync.Mutex
	notReady error
	openErr  error         // of every open
	openHold chan struct{} // opens wait for it, or for their context
	opening  int           // opens so far
	closeErr map[string]error
	// closeHold has the removal of a device wait, by name.
	closeHold map[string]chan struct{}
	inUse     map[string][]api.User // by device name
	live      map[string]*fakeDevice
	next      int
	taken     map[string]bool // opened or closed with take-over, by name
	dead      []int           // left by crashed daemons
	waiting   map[int]bool    // left by them, to be recovered
	leftUsers []api.User      // of all these
	failed    []int           // of those, whose I/O failed
	deleted   []int
	stackErr  error // of closeImages
	leftErr   error // of left, which then knows nothing
	// tags are the marks of those that were made by open. Others have what daemons gave all of a
	// state directory's before each had one of its own.
	tags map[int]state.Tag
	// kept are those of waiting that the driver takes for served.
	kept map[int]bool

	replaceErr error
	examineErr map[string]error // by device name
	recovered  func(device.Recovery)

	asked    int           // devices, for their status
	scans    int           // for users
	scanHold chan struct{} // they wait for it
	// gather, if not nil, has questions for a status wait until so many are out.
	gather *sync.WaitGroup
}

var _ kernel = (*fakeKernel)(nil)

func newFake(t *testing.T) *fakeKernel {
	return &fakeKernel{t: t, closeErr: map[string]error{}, inUse: map[string][]api.User{},
		live: map[string]*fakeDevice{}, taken: map[string]bool{}, waiting: map[int]bool{}, tags: map[int]state.Tag{}}
}

// d is the live device of a name; mu is held.
func (k *fakeKernel) d(name string) *fakeDevice { return k.live[name] }

type fakeDevice struct {
	k      *fakeKernel
	id     int
	spec   api.Spec
	event  func(api.Event)
	forced bool
	// machine is the real one: what the daemon sees of standby is not made up.
	machine  *standby.Device
	replaced []device.Replace
	// unanswered is what its queues owe.
	unanswered time.Duration
	oldest     *api.OldestRequest // with it the device is hung
	displaced  []api.Displaced
	leaving    func() // what happens meanwhile
}

var _ live = (*fakeDevice)(nil)

func (k *fakeKernel) ready() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.notReady
}

func (k *fakeKernel) open(ctx context.Context, spec api.Spec, o openOptions) (live, error) {
	rec, err := state.ReadRecord(state.Records{Dir: filepath.Join(k.stateDir, "devices")}.Path(spec.Name))
	if err != nil {
		k.t.Errorf("open of %s without a good record: %v", spec.Name, err)
	} else if rec.Spec.Name != spec.Name || len(rec.Images) != len(spec.Images) {
		k.t.Errorf("open of %+v under record %+v", spec, rec)
	}
	k.mu.Lock()
	hold := k.openHold
	k.opening++
	k.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.openErr != nil {
		return nil, k.openErr
	}
	for _, d := range k.live {
		if d.spec.Images[len(d.spec.Images)-1] == spec.Images[len(spec.Images)-1] && !spec.ReadOnly {
			k.t.Errorf("%s and %s write to the same image", d.spec.Name, spec.Name)
		}
	}
	d := &fakeDevice{k: k, id: k.next, spec: spec, event: o.event, machine: standby.NewDevice(o.key, standby.Options{})}
	if r := o.recover; r != nil {
		if disk := (state.Disk{ID: r.ID, Tag: state.Tag(r.Tag)}); !k.waiting[r.ID] || k.disk(r.ID) != disk {
			return nil, ublk.ErrNoDevice
		}
		if k.kept[r.ID] {
			return nil, fmt.Errorf("ublk: device %d: %w", r.ID, ublk.ErrUnreleased)
		}
		if k.recovered != nil {
			k.recovered(*r)
		}
		delete(k.waiting, r.ID)
		d.id = r.ID
		for _, c := range r.Consumers {
			d.machine.Attach(c)
		}
		if r.Standby != nil {
			d.machine.Restore(*r.Standby)
		}
	} else {
		for k.waiting[k.next] {
			k.next++
		}
		d.id = k.next
		k.tags[d.id] = o.tag
		k.next++
		if err := o.added(d.id); err != nil {
			return nil, err
		}
	}
	k.live[spec.Name] = d
	k.taken[spec.Name] = o.takeOver
	return d, nil
}

func (k *fakeKernel) closeImages(spec api.Spec, _ device.Known) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.taken[spec.Name] = true
	return k.stackErr
}

func (k *fakeKernel) examine(spec api.Spec, _ device.Known) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.examineErr[spec.Name]
}

// disk is a device with its mark; mu is held.
func (k *fakeKernel) disk(id int) state.Disk {
	tag, ok := k.tags[id]
	if !ok {
		tag = state.OldTag(k.stateDir)
	}
	return state.Disk{ID: id, Tag: tag}
}

func (k *fakeKernel) left(context.Context) (map[state.Disk]bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.leftErr != nil {
		return nil, k.leftErr
	}
	left := map[state.Disk]bool{}
	for _, id := range k.dead {
		left[k.disk(id)] = false
	}
	for id := range k.waiting {
		left[k.disk(id)] = true
	}
	maps.DeleteFunc(left, func(disk state.Disk, _ bool) bool { return !disk.Tag.Of(k.stateDir) })
	return left, nil
}

func (k *fakeKernel) unreleased(_ context.Context, disk state.Disk) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept[disk.ID] && k.disk(disk.ID) == disk
}

func (k *fakeKernel) holders(int) string { return "process 1 (init)" }

func (k *fakeKernel) delete(_ context.Context, disk state.Disk) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := disk.ID
	if k.disk(id) != disk {
		return nil
	}
	if k.kept[id] {
		return fmt.Errorf("%w: %s", ublk.ErrUnreleased, unreleasedText(id, "process 1 (init)"))
	}
	k.dead = slices.DeleteFunc(k.dead, func(i int) bool { return i == id })
	delete(k.waiting, id)
	k.deleted = append(k.deleted, id)
	return nil
}

// fakeFailing fails the I/O of a device that waits.
type fakeFailing struct {
	k  *fakeKernel
	id int
}

var _ failing = (*fakeFailing)(nil)

func (k *fakeKernel) fail(_ context.Context, disk state.Disk) (failing, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := disk.ID
	if !k.waiting[id] || k.disk(id) != disk {
		return nil, ublk.ErrNoDevice
	}
	delete(k.waiting, id)
	k.failed = append(k.failed, id)
	return &fakeFailing{k, id}, nil
}

func (f *fakeFailing) Leave(context.Context) error {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	f.k.waiting[f.id] = true
	return nil
}

func (f *fakeFailing) Stop(context.Context) error { return nil }

func (k *fakeKernel) users(disks map[int]string) (map[int][]api.User, error) {
	k.mu.Lock()
	k.scans++
	if hold := k.scanHold; hold != nil {
		k.mu.Unlock()
		<-hold
		k.mu.Lock()
	}
	defer k.mu.Unlock()
	out := map[int][]api.User{}
	for name, d := range k.live {
		if _, ok := disks[d.id]; ok {
			out[d.id] = k.inUse[name]
		}
	}
	for id := range k.waiting {
		if _, ok := disks[id]; ok {
			out[id] = k.leftUsers
		}
	}
	return out, nil
}

func (k *fakeKernel) close() {}

func (k *fakeKernel) setUsers(name string, users ...api.User) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.inUse[name] = users
}

func (d *fakeDevice) ID() int      { return d.id }
func (d *fakeDevice) Path() string { return fmt.Sprintf("/dev/ublkb%d", d.id) }

func (d *fakeDevice) Status() api.Status {
	d.k.mu.Lock()
	if g := d.k.gather; g != nil {
		d.k.mu.Unlock()
		g.Done()
		g.Wait()
		d.k.mu.Lock()
	}
	defer d.k.mu.Unlock()
	d.k.asked++
	st := api.Status{Name: d.spec.Name, ID: d.id, Path: d.Path(), Size: 1 << 30, State: "live", ReadOnly: d.spec.ReadOnly}
	m := d.machine.Status()
	st.Standby = api.StandbyStatus{Value: m.Value(), Enabled: m.Enabled, Flag: m.Flag, Consumers: m.Consumers, Cause: m.Cause, ByHand: m.ByHand, Tags: 128, Recovery: api.RecoveryManual}
	if m.Flag && m.Supported {
		st.State, st.Since, st.Standby.Since = api.StateStandby, m.Since, &m.Since
	}
	for i, r := range d.spec.Images {
		st.Images = append(st.Images, ploop.ImageStatus{Path: r.Path, Level: i})
	}
	if d.oldest != nil {
		st.State, st.Since, st.Oldest, st.Counters.InFlight = api.StateHung, d.oldest.Since, d.oldest, 1
	}
	st.Displaced = d.displaced
	return st
}

func (d *fakeDevice) Unanswered() time.Duration {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	return d.unanswered
}

func (d *fakeDevice) Restored() *standby.Restored {
	m := d.machine.Status()
	if !m.Flag {
		return nil
	}
	return &standby.Restored{ByHand: m.ByHand, Errno: m.Errno, Cause: m.Cause, Since: m.Since}
}

// Leave leaves it to the next daemon.
func (d *fakeDevice) Leave(context.Context, time.Duration) error {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	if err := d.k.closeErr[d.spec.Name]; err != nil {
		return err
	}
	if d.leaving != nil {
		d.leaving()
	}
	delete(d.k.live, d.spec.Name)
	d.k.waiting[d.id] = true
	return nil
}

func (d *fakeDevice) Attach(consumer string) error { return d.machine.Attach(consumer) }
func (d *fakeDevice) Detach(consumer string) error { return d.machine.Detach(consumer) }

func (d *fakeDevice) SetStandby(on bool) error {
	if on {
		return d.machine.Set()
	}
	d.machine.Clear("by hand")
	return nil
}

// Replace does as a real one does: the record is changed before the file is.
func (d *fakeDevice) Replace(_ context.Context, r device.Replace) error {
	d.k.mu.Lock()
	err := d.k.replaceErr
	d.k.mu.Unlock()
	if err != nil {
		return err
	}
	spec := d.spec
	if r.Level < 0 {
		r.Level = len(spec.Images) - 1
	}
	spec.Images = slices.Clone(spec.Images)
	spec.Images[r.Level] = r.Image
	if err := r.Commit(spec); err != nil {
		return err
	}
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	d.spec, d.replaced = spec, append(d.replaced, r)
	d.machine.Recovered()
	return nil
}

func (d *fakeDevice) Close(_ context.Context, force bool) error {
	d.k.mu.Lock()
	if hold := d.k.closeHold[d.spec.Name]; hold != nil {
		d.k.mu.Unlock()
		<-hold
		d.k.mu.Lock()
	}
	defer d.k.mu.Unlock()
	if err := d.k.closeErr[d.spec.Name]; err != nil {
		if !errors.Is(err, device.ErrBusy) && !errors.Is(err, context.DeadlineExceeded) {
			delete(d.k.live, d.spec.Name)
		}
		return err
	}
	if len(d.k.inUse[d.spec.Name]) > 0 && !force {
		return device.ErrBusy
	}
	if d.k.live[d.spec.Name] != d {
		d.k.t.Errorf("%s closed twice", d.spec.Name)
	}
	delete(d.k.live, d.spec.Name)
	d.forced = force
	return nil
}

// fixture is a daemon on a fake kernel, a client of it, and image files.
type fixture struct {
	t       *testing.T
	k       *fakeKernel
	d       *Daemon
	c       *api.Client
	dir     string
	targets []string // Config.Targets
	log     zerolog.Logger
	serving chan error
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, k: newFake(t), dir: t.TempDir(), targets: []string{}}
	f.k.stateDir = f.stateDir()
	f.start()
	t.Cleanup(f.crash)
	return f
}

func (f *fixture) stateDir() string { return filepath.Join(f.dir, "state") }
func (f *fixture) runDir() string   { return filepath.Join(f.dir, "run") }

func (f *fixture) start() {
	f.t.Helper()
	d, err := start(Config{RunDir: f.runDir(), StateDir: f.stateDir(), Version: "test", Log: f.log, NoTree: true, Targets: f.targets,
		TargetRoots: target.Roots{Configfs: filepath.Join(f.dir, "config"), Sys: filepath.Join(f.dir, "none"), Number: f.number}}, f.k)
	if err != nil {
		f.t.Fatal(err)
	}
	d.settle, d.poll = 300*time.Millisecond, 10*time.Millisecond
	f.d, f.c, f.serving = d, api.NewClient(f.runDir()), make(chan error, 1)
	go func() { f.serving <- d.Serve() }()
}

// number makes up device numbers: the disk's own, in a /sys that is made up with it.
func (f *fixture) number(path string) (uint32, uint32, bool) {
	var id uint32
	if _, err := fmt.Sscanf(path, "/dev/ublkb%d", &id); err != nil {
		return 0, 0, false
	}
	at := filepath.Join(f.dir, "none/devices", filepath.Base(path))
	links := filepath.Join(f.dir, "none/dev/block")
	for _, dir := range []string{at, links} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			f.t.Error(err)
		}
	}
	os.Symlink(at, filepath.Join(links, fmt.Sprintf("259:%d", id))) // may be there
	return 259, id, true
}

// crash ends the daemon as kill -9 would, as far as others can see.
func (f *fixture) crash() {
	if f.d == nil {
		return
	}
	f.d.Close()
	if err := <-f.serving; err != nil {
		f.t.Errorf("Serve: %v", err)
	}
	f.d = nil
	f.k.mu.Lock()
	for _, d := range f.k.live {
		f.k.dead = append(f.k.dead, d.id)
	}
	clear(f.k.live)
	f.k.mu.Unlock()
}

func (f *fixture) restart() {
	f.t.Helper()
	f.crash()
	f.start()
}

// image makes a file that stands for an image.
func (f *fixture) image(name string) ploop.ImageRef {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if _, err := os.Stat(path); err != nil {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	return ploop.ImageRef{Path: path}
}

// spec is a device on images of those names, base first.
func (f *fixture) spec(name string, images ...string) api.Spec {
	s := api.Spec{Name: name}
	for _, i := range images {
		s.Images = append(s.Images, f.image(i))
	}
	return s
}

func (f *fixture) create(name string, images ...string) *api.Device {
	f.t.Helper()
	dev, err := f.c.Create(context.Background(), f.spec(name, images...))
	if err != nil {
		f.t.Fatalf("create %s: %v", name, err)
	}
	return dev
}

func (f *fixture) states() map[string]string {
	f.t.Helper()
	snap, err := f.c.Snapshot(context.Background())
	if err != nil {
		f.t.Fatal(err)
	}
	m := map[string]string{}
	for _, d := range snap.Devices {
		m[d.Name] = d.State
	}
	return m
}

// recorded are the names in the state directory.
func (f *fixture) recorded() []string {
	f.t.Helper()
	recs, _, err := state.Records{Dir: filepath.Join(f.stateDir(), "devices")}.Load()
	if err != nil {
		f.t.Fatal(err)
	}
	names := []string{}
	for _, r := range recs {
		names = append(names, r.Spec.Name)
	}
	return names
}

// wantCode fails unless err has the code.
func wantCode(t *testing.T, err error, code api.Code) *api.Error {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got error %v (%v), want code %s", err, api.CodeOf(err), code)
	}
	return e
}

var mounted = api.User{Kind: "mount", Device: "ublkb0", Name: "/mnt"}
