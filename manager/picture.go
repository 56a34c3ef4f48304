package manager

import (
	"cmp"
	"fmt"
	"slices"

	"holdfast/api"
	"holdfast/state"
)

// device is the device as far as it is known, nil: there is none. Nobody is asked.
func (p *peer) device() *api.Device {
	o := p.observation()
	dev := p.all.deviceOf(&o)
	if dev == nil {
		return nil
	}
	dev.Server = &api.ServerState{PID: o.pid, State: o.state, Since: o.since.UTC(), Build: o.info.Build, Problem: cmp.Or(o.wrong, o.unsure)}
	if !o.asOf.IsZero() {
		dev.Server.AsOf = o.asOf.UTC()
	}
	switch o.state {
	case api.ServerSilent:
		dev.State, dev.Since = api.StateSilent, o.since
		dev.Problem = fmt.Sprintf("its server, process %d, lives and has not answered since %s; what is shown is of %s", o.pid, api.Clock(o.since), asOf(&o))
		dev.Advice = fmt.Sprintf("what it is held up by is in /proc/%d/task/*/stack; if it never answers again, 'kill -9 %d': another one takes the device over", o.pid, o.pid)
		dev.Server.Problem = dev.Problem
	case api.ServerDying:
		dev.State, dev.Since = api.StateDying, o.since
		dev.Problem = dyingText(o.pid, storageOf(dev))
		dev.Advice = fmt.Sprintf("bring the storage of %s back, or abort its mount (umount -f, or 1 into /sys/fs/fuse/connections/N/abort): then another server takes the device over", storageOf(dev))
		dev.Server.Problem = dev.Problem
	}
	return dev
}

func asOf(o *observation) string {
	if o.asOf.IsZero() {
		return "its record"
	}
	return api.Clock(o.asOf)
}

// dyingText says what a server that was killed waits for.
func dyingText(pid int, file string) string {
	return fmt.Sprintf("its server, process %d, was killed and can't end: it waits for the storage of %s", pid, file)
}

// storageOf names the file that most likely keeps a server: the one that its oldest request is
// about, or the top image.
func storageOf(dev *api.Device) string {
	if dev.Oldest != nil && dev.Oldest.File != "" {
		return fmt.Sprintf("%q", dev.Oldest.File)
	}
	if n := len(dev.Images); n > 0 {
		return fmt.Sprintf("%q", dev.Images[n-1].Path)
	}
	return "its images"
}

// deviceOf is what the server said last, or else what its record says.
func (ps *peers) deviceOf(o *observation) *api.Device {
	if !o.asOf.IsZero() {
		if o.report == nil {
			return nil
		}
		dev := *o.report
		if dev.Users == nil {
			dev.Users = []api.User{}
		}
		if dev.Events == nil {
			dev.Events = []api.Event{}
		}
		return &dev
	}
	rec := o.rec
	if rec == nil {
		return nil
	}
	dev := &api.Device{Created: rec.Created, Persist: rec.Spec.Persist, Users: []api.User{}, Events: []api.Event{}}
	switch unserved(rec, o.inDriver) {
	case api.StateRecovering:
		dev.Status = rec.Waiting(api.StateRecovering, ps.check.on())
		dev.Problem = fmt.Sprintf("its server (process %d) died or left", rec.PID)
		dev.Advice = fmt.Sprintf("another one is to take it over; 'holdfast recover %s' tries now", rec.Spec.Name)
	case api.StateEnded:
		dev.Status = rec.Offline()
		dev.State, dev.Advice = api.StateEnded, fmt.Sprintf("'holdfast create %s' with the same images serves it again, 'holdfast remove %s' forgets it", rec.Spec.Name, rec.Spec.Name)
	case api.StateWaiting:
		dev.Status = rec.Offline()
		dev.State, dev.Problem = api.StateWaiting, "it is to be created again, and has no server yet"
		dev.Advice = fmt.Sprintf("'holdfast create %s' with the same images tries now, 'holdfast remove %s' forgets it", rec.Spec.Name, rec.Spec.Name)
	default:
		dev.Status = rec.Offline()
		dev.State, dev.Problem = api.StateLost, fmt.Sprintf("its server (process %d) died", rec.PID)
		if rec.BootID != ps.boot {
			dev.Problem = "the machine went down while the device was served"
		}
		dev.Advice = fmt.Sprintf("'holdfast create %s' with the same images serves it again, 'holdfast remove %s' closes the images cleanly and forgets it", rec.Spec.Name, rec.Spec.Name)
	}
	return dev
}

// unserved is the state of a device that has no server.
func unserved(rec *state.Record, inDriver bool) string {
	switch {
	case inDriver:
		return api.StateRecovering
	case rec.Closed:
		return api.StateEnded
	case rec.Spec.Persist:
		return api.StateWaiting
	}
	return api.StateLost
}

// images are the paths of a device's files, and whether it writes to the last: by its server's
// word, or by the record's.
func (o *observation) images() (paths []string, writes bool) {
	switch {
	case o.report != nil:
		for _, i := range o.report.Images {
			paths = append(paths, i.Path)
		}
		return paths, !o.report.ReadOnly
	case o.rec != nil:
		for _, i := range o.rec.Spec.Images {
			paths = append(paths, i.Path)
		}
		return paths, !o.rec.Spec.ReadOnly
	}
	return nil, false
}

// number is the device's in the driver; false: it has none, for all that is known.
func (o *observation) number() (id int, ok bool) {
	switch {
	case o.report != nil:
		return o.report.ID, o.report.Path != ""
	case o.rec != nil && o.inDriver:
		return o.rec.ID, true
	}
	return 0, false
}

// overlap is an image of a device with the paths mine that another one can't share: one of them
// writes to it. "": there is none. By whatever other path a file may be reached is the servers' to
// see, which look at the files themselves.
func overlap(mine []string, write bool, theirs []string, theyWrite bool) string {
	for i, path := range mine {
		at := slices.Index(theirs, path)
		if at < 0 {
			continue
		}
		if write && i == len(mine)-1 || theyWrite && at == len(theirs)-1 {
			return path
		}
	}
	return ""
}
