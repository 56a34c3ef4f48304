package state

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop/image"
)

// Offline is what can be said of a device that has nothing in the driver.
func (rec *Record) Offline() api.Status {
	spec := &rec.Spec
	st := api.Status{Name: spec.Name, ID: -1, ReadOnly: spec.ReadOnly, Damaged: spec.Damaged, Queues: spec.Queues, Depth: spec.Depth, DataPath: spec.DataPath,
		LogicalBlock: max(spec.LogicalBlockSize, image.SectorSize)}
	for i, ref := range spec.Images {
		st.Images = append(st.Images, api.ImageStatus{Path: ref.Path, Level: i})
	}
	return st
}

// Waiting is what can be said of a device that waits for a server: it has its disk, and perhaps
// its standby. check says whether the standby check is on.
func (rec *Record) Waiting(state string, check bool) api.Status {
	st := rec.Offline()
	st.ID, st.Path, st.State = rec.ID, fmt.Sprintf("/dev/ublkb%d", rec.ID), state
	st.Size = rec.Size
	s := &st.Standby
	s.Consumers = append(slices.Clone(rec.Leases), rec.TargetLeases...)
	slices.Sort(s.Consumers)
	s.Enabled, s.Flag = len(s.Consumers) > 0, rec.Standby != nil
	switch {
	case !s.Enabled || !check:
		s.Value = "not supported"
	case s.Flag:
		s.Value = "on"
	default:
		s.Value = "off"
	}
	if s.Resume = rec.Spec.Resume; s.Resume == "" {
		s.Resume = api.ResumeManual
	}
	if r := rec.Standby; r != nil {
		s.Since, s.Cause, s.ByHand = &r.Since, r.Cause, r.ByHand
		if r.Errno != 0 {
			s.Errno = api.ErrnoName(unix.Errno(r.Errno))
		}
	}
	return st
}
