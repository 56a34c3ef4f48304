package server

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"holdfast/api"
	"holdfast/server/device"
	"holdfast/standby"
	"holdfast/state"
	"holdfast/ublk"
)

// fakeKernel is a driver whose devices are only numbers. It fails the test when servers break
// their promises: a device is opened only under a record that says so, never one whose images
// another writes to, and a number only by the device that has it.
type fakeKernel struct {
	t        *testing.T
	stateDir string

	mu       sync.Mutex
	notReady error
	openErr  error         // of every open
	openHold chan struct{} // opens wait for it, or for their context
	opening  int           // opens so far
	closeErr map[string]error
	// closeHold and replaceHold have the removal, and a replacement, of a device wait, by name.
	closeHold, replaceHold map[string]chan struct{}
	inUse                  map[string][]api.User // by device name
	live                   map[string]*fakeDevice
	next                   int
	taken                  map[string]bool // opened or closed with take-over, by name
	waiting                map[int]string  // left by dead servers, to be recovered: their names
	dead                   map[int]string  // left by them, and can't be
	tags                   map[int]state.Tag
	leftUsers              []api.User // of all these
	failed                 []int      // of those, whose I/O failed
	deleted                []int
	stackErr               error // of closeImages
	leftErr                error // of left, which then knows nothing
	leftHold               chan struct{}
	// kept are those of waiting that the driver takes for served.
	kept map[int]bool

	replaceErr error
	examineErr map[string]error // by device name
	recovered  func(device.Recovery)

	asked int // devices, for their status
	scans int // for users
	// scanHold has searches for users wait.
	scanHold chan struct{}
}

func newFake(t *testing.T, stateDir string) *fakeKernel {
	return &fakeKernel{t: t, stateDir: stateDir, closeErr: map[string]error{}, inUse: map[string][]api.User{},
		closeHold: map[string]chan struct{}{}, replaceHold: map[string]chan struct{}{},
		live: map[string]*fakeDevice{}, taken: map[string]bool{}, tags: map[int]state.Tag{}, waiting: map[int]string{}, dead: map[int]string{}}
}

func (k *fakeKernel) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
}

// device is the one of a name that is served.
func (k *fakeKernel) device(name string) *fakeDevice {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.live[name]
}

func (k *fakeKernel) setUsers(name string, users ...api.User) {
	k.set(func() { k.inUse[name] = users })
}

func (k *fakeKernel) setOpenErr(err error) { k.set(func() { k.openErr = err }) }

func (k *fakeKernel) isTaken(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.taken[name]
}

// gone is a server's death: the driver keeps its device, which can be recovered or not.
func (k *fakeKernel) gone(name string, recoverable bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.live[name]
	if d == nil {
		return
	}
	delete(k.live, name)
	if recoverable {
		k.waiting[d.id] = name
	} else {
		k.dead[d.id] = name
	}
}

// fakeServer is the driver as one server has it: a dead one can't do anything any more.
type fakeServer struct {
	*fakeKernel
	dead chan struct{}
}

var errDead = errors.New("the server is dead")

func (s *fakeServer) open(ctx context.Context, spec api.Spec, o openOptions) (live, error) {
	k := s.fakeKernel
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
	select {
	case <-s.dead:
		return nil, errDead
	default:
	}
	if k.openErr != nil {
		return nil, k.openErr
	}
	for _, d := range k.live {
		if !spec.ReadOnly && slices.Contains(d.spec.Images, spec.Images[len(spec.Images)-1]) {
			k.t.Errorf("%s writes to an image that %s has", spec.Name, d.spec.Name)
		}
	}
	d := &fakeDevice{k: k, spec: spec, event: o.event, machine: standby.NewDevice(o.sw, standby.Options{})}
	if r := o.recover; r != nil {
		if k.waiting[r.ID] == "" || k.tags[r.ID] != state.Tag(r.Tag) {
			return nil, ublk.ErrNoDevice
		}
		if k.kept[r.ID] {
			return nil, fmt.Errorf("ublk: device %d: %w", r.ID, ublk.ErrUnreleased)
		}
		if k.waiting[r.ID] != spec.Name {
			k.t.Errorf("%s takes over device %d, which is %s's", spec.Name, r.ID, k.waiting[r.ID])
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
		for k.waiting[k.next] != "" || k.dead[k.next] != "" {
			k.next++
		}
		d.id = k.next
		k.next++
		k.tags[d.id] = o.tag
		if err := o.added(d.id); err != nil {
			return nil, err
		}
	}
	k.live[spec.Name] = d
	k.taken[spec.Name] = o.takeOver
	return d, nil
}

func (k *fakeKernel) ready() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.notReady
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

// left knows whose a number is by the driver's mark on it.
func (k *fakeKernel) left(_ context.Context, disk state.Disk) (leftover, error) {
	k.mu.Lock()
	hold := k.leftHold
	k.mu.Unlock()
	if hold != nil {
		<-hold
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.leftErr != nil:
		return leftNothing, k.leftErr
	case k.tags[disk.ID] != disk.Tag:
	case k.waiting[disk.ID] != "":
		return leftWaiting, nil
	case k.dead[disk.ID] != "":
		return leftDead, nil
	}
	return leftNothing, nil
}

func (k *fakeKernel) unreleased(_ context.Context, disk state.Disk) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept[disk.ID]
}

func (k *fakeKernel) holders(int) string { return "process 1 (init)" }

func (k *fakeKernel) delete(_ context.Context, disk state.Disk) error {
	id := disk.ID
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tags[id] != disk.Tag {
		return nil
	}
	if k.kept[id] {
		return fmt.Errorf("%w: %s", ublk.ErrUnreleased, unreleasedText(id, "process 1 (init)"))
	}
	delete(k.dead, id)
	delete(k.waiting, id)
	k.deleted = append(k.deleted, id)
	return nil
}

// fakeFailing fails the I/O of a device that waits.
type fakeFailing struct {
	k    *fakeKernel
	id   int
	name string
}

func (k *fakeKernel) fail(_ context.Context, disk state.Disk) (failing, error) {
	id := disk.ID
	k.mu.Lock()
	defer k.mu.Unlock()
	name := k.waiting[id]
	if name == "" {
		return nil, ublk.ErrNoDevice
	}
	delete(k.waiting, id)
	k.failed = append(k.failed, id)
	return &fakeFailing{k, id, name}, nil
}

func (f *fakeFailing) Leave(context.Context) error {
	f.k.set(func() { f.k.waiting[f.id] = f.name })
	return nil
}

func (f *fakeFailing) Stop(context.Context) error { return nil }

func (k *fakeKernel) users(disks map[int]string) (map[int][]api.User, error) {
	k.mu.Lock()
	k.scans++
	hold := k.scanHold
	k.mu.Unlock()
	if hold != nil {
		<-hold
	}
	k.mu.Lock()
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

var mounted = api.User{Kind: "mount", Device: "ublkb0", Name: "/mnt"}
