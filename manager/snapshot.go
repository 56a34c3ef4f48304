package manager

import (
	"context"
	"slices"
	"strings"

	"holdfast/api"
)

// Snapshot is everything that is known now, with a search for who uses the devices if that is
// wanted.
func (m *Manager) Snapshot(ctx context.Context, withUsers bool) api.Snapshot {
	snap := api.Snapshot{Daemon: m.Info(), Key: m.Key(), Devices: m.peers.current(ctx), Problems: []api.Problem{}}
	if withUsers {
		m.addUsers(snap.Devices)
	}
	missing := ""
	if err := m.cfg.driver.ready(); err != nil {
		missing = err.Error()
	}
	snap.Driver = api.DriverInfo{Available: missing == "", Missing: missing}
	snap.Problems = append(append(snap.Problems, m.peers.allProblems()...), m.orphans.problems()...)
	slices.SortStableFunc(snap.Problems, func(a, b api.Problem) int { return strings.Compare(a.File, b.File) })
	return snap
}

// Device is the part of a snapshot that concerns one device.
func (m *Manager) Device(ctx context.Context, name string, withUsers bool) (*api.Device, error) {
	var dev *api.Device
	if p := m.peers.get(name); p != nil {
		dev = p.current(ctx)
	}
	if dev == nil {
		return nil, api.Errorf(api.CodeNotFound, "there is no device %q", name)
	}
	if withUsers {
		one := []api.Device{*dev}
		m.addUsers(one)
		dev = &one[0]
	}
	return dev, nil
}

// addUsers says who holds devices, with one search for all.
func (m *Manager) addUsers(devs []api.Device) {
	disks := map[int]string{}
	for _, dev := range devs {
		if dev.Path != "" {
			disks[dev.ID] = dev.Path
		}
	}
	users, err := m.search.Of(disks)
	if err != nil {
		m.log.Warn().Err(err).Msg("there may be users of the devices that are not known")
	}
	for i := range devs {
		if devs[i].Path != "" {
			devs[i].Users = append([]api.User{}, users[devs[i].ID]...)
		}
	}
}

// Key is the state of the standby check.
func (m *Manager) Key() api.KeyInfo {
	info := m.check.info()
	info.Targets = m.targets.info()
	return info
}
