package server

import (
	"golang.org/x/sys/unix"

	"holdfast/standby"
	"holdfast/state"
)

// recordStandby is nil for nil.
func recordStandby(r *standby.Restored) *state.Standby {
	if r == nil {
		return nil
	}
	return &state.Standby{ByHand: r.ByHand, Errno: int(r.Errno), Cause: r.Cause, Since: r.Since}
}

// restored is nil for nil.
func restored(r *state.Standby) *standby.Restored {
	if r == nil {
		return nil
	}
	return &standby.Restored{ByHand: r.ByHand, Errno: unix.Errno(r.Errno), Cause: r.Cause, Since: r.Since}
}
