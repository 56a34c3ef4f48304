package control

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"sync"

	"holdfast/api"
)

// Info says who this daemon is.
func (d *Daemon) Info() api.DaemonInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	return api.DaemonInfo{Version: d.cfg.Version, API: api.APIVersion, PID: os.Getpid(), Started: d.started.UTC(),
		RunDir: d.cfg.RunDir, StateDir: d.cfg.StateDir, Stopping: d.stopping}
}

// Snapshot is everything the daemon knows now.
func (d *Daemon) Snapshot() api.Snapshot { return d.snapshot(d.devices("")) }

// Brief is a snapshot without users of devices, which are not looked for.
func (d *Daemon) Brief() api.Snapshot { return d.snapshot(d.briefDevices("")) }

func (d *Daemon) snapshot(devices []api.Device) api.Snapshot {
	snap := api.Snapshot{Daemon: d.Info(), Key: d.Key(), Devices: devices, Problems: []api.Problem{}}
	missing := ""
	if err := d.kernel.ready(); err != nil {
		missing = err.Error()
	}
	d.mu.Lock()
	if missing == "" {
		missing = d.driverProblem
	}
	problems := slices.Clone(d.problems)
	d.mu.Unlock()
	snap.Driver = api.DriverInfo{Available: missing == "", Missing: missing}
	// A problem is solved by deleting its file.
	for _, p := range problems {
		if _, err := os.Lstat(p.File); !errors.Is(err, os.ErrNotExist) {
			snap.Problems = append(snap.Problems, p)
		}
	}
	sort.Slice(snap.Problems, func(i, j int) bool { return snap.Problems[i].File < snap.Problems[j].File })
	if p, bad := d.records.Problem(); bad {
		snap.Problems = append(snap.Problems, p)
	}
	return snap
}

// Device is the part of a snapshot that concerns one device.
func (d *Daemon) Device(name string) (*api.Device, error) { return theOnly(d.devices(name), name) }

// BriefDevice is Device without users.
func (d *Daemon) BriefDevice(name string) (*api.Device, error) {
	return theOnly(d.briefDevices(name), name)
}

func theOnly(devs []api.Device, name string) (*api.Device, error) {
	if len(devs) == 0 {
		return nil, api.Errorf(api.CodeNotFound, "there is no device %q", name)
	}
	return &devs[0], nil
}

// devices is the state of one device, or of all for "", with one search for their users.
func (d *Daemon) devices(only string) []api.Device {
	out := d.briefDevices(only)
	disks := map[int]string{}
	for _, dev := range out {
		if dev.Path != "" {
			disks[dev.ID] = dev.Path
		}
	}
	users, err := d.scans.Of(disks)
	if err != nil {
		d.log.Warn().Err(err).Msg("there may be users of the devices that are not known")
	}
	for i := range out {
		out[i].Users = append(out[i].Users, users[out[i].ID]...)
	}
	return out
}

// briefDevices is devices without their users.
func (d *Daemon) briefDevices(only string) []api.Device {
	type entry struct {
		api.Device
		dev   live
		phase string
	}
	var entries []entry
	d.mu.Lock()
	for _, s := range d.slots {
		if s.rec == nil || only != "" && s.name != only {
			continue
		}
		e := entry{dev: s.dev, phase: s.phase}
		e.Created, e.Persist, e.Problem = s.rec.Created, s.rec.Spec.Persist, s.problem
		e.Events = append([]api.Event{}, s.events...)
		if e.Status = s.rec.Offline(); s.phase == api.StateRecovering {
			e.Status = s.rec.Waiting(s.waitState(), d.check.On())
		}
		entries = append(entries, e)
	}
	d.mu.Unlock()

	// The devices are asked outside the lock: a Status that had to wait must
	// not stop the daemon. Nor do those that make one wait hold up the others.
	var asked sync.WaitGroup
	for i := range entries {
		if e := &entries[i]; e.dev != nil {
			asked.Go(func() { e.Status = e.dev.Status() })
		}
	}
	asked.Wait()
	out := make([]api.Device, 0, len(entries))
	for _, e := range entries {
		switch {
		case e.dev != nil:
			if e.Problem != "" {
				e.Advice = fmt.Sprintf("see to its storage, then 'holdfast remove %s' again", e.Name)
			} else {
				api.Advise(&e.Device)
			}
		case e.phase == "":
			e.State, e.Advice = api.StateLost, lostAdvice(e.Name)
		case e.phase == api.StateWaiting:
			e.Advice = fmt.Sprintf("it is tried again and again, and when something is mounted; 'holdfast create %s' with the same images tries now, 'holdfast remove %s' forgets it", e.Name, e.Name)
		case e.phase == api.StateRecovering:
			e.Advice = fmt.Sprintf("it is tried again and again; 'holdfast recover %s' tries now, 'holdfast replace %s FILE' takes another file", e.Name, e.Name)
		}
		if e.phase != "" && e.phase != api.StateRecovering {
			e.State = e.phase
		}
		e.Users = []api.User{}
		out = append(out, e.Device)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}
