package control

import (
	"context"

	"holdfast/api"
	"holdfast/state"
	"holdfast/ublk"
)

// Identify finds out what /dev/ublkb<number> is, nil if it is none of ours. It asks no
// daemon, so it answers while there is none: the driver has the mark of the state
// directory on the device, and the records have the name. Only daemons with the default
// directories, or with both of the form /run/holdfast-INSTANCE, are found.
func Identify(ctx context.Context, number int) (*state.Identity, error) {
	ctl, err := ublk.Open("")
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	info, err := ctl.GetInfo(ctx, number)
	if err != nil {
		return nil, err
	}
	id, err := state.IdentityOf(api.DefaultRunDir, api.DefaultStateDir, state.Disk{ID: number, Tag: state.Tag(info.Tag)}, state.BootID())
	if id != nil {
		id.Served = id.Served && info.State == ublk.Live && !info.Unreleased()
		_, id.IOTimeout, _ = ctl.TimeoutAttr(ctx, number)
	}
	return id, err
}
