package control

import (
	"context"

	"holdfast/api"
	"holdfast/state"
)

// endDevice is what the daemon's end means for one device. One that still waits for its
// recovery is left to the next daemon if nobody uses it. Its users can't let go of it before it
// is served again: so it goes on being recovered, and is waited for as others are. By
// force it is taken away under them; its record stays, as its images were not closed.
func (d *Daemon) endDevice(ctx context.Context, s *slot, force bool) error {
	if d.isGone() {
		return api.Errorf(api.CodeNotFound, "device %q is another daemon's", s.name)
	}
	d.mu.Lock()
	waits := s.rec != nil && s.phase == api.StateRecovering
	var disk state.Disk
	var failing failing
	problem := s.problem
	if waits {
		disk, failing = s.rec.Disk(d.cfg.StateDir), s.failing
	}
	d.mu.Unlock()
	if !waits {
		return d.removeLive(ctx, s, force, true)
	}
	users, err := d.scans.Of(map[int]string{disk.ID: disk.String()})
	if err == nil && len(users[disk.ID]) == 0 {
		d.log.Info().Str("device", s.name).Msgf("left to the next daemon: %s", problem)
		return nil
	}
	if !force {
		who := "perhaps somebody who cannot be seen from here"
		if len(users[disk.ID]) > 0 {
			who = userList(users[disk.ID])
		}
		return api.Errorf(api.CodeBusy, "device %q waits to be recovered (%s), and with it %s", s.name, problem, who)
	}
	if err := d.giveUp(ctx, s, disk, failing); err != nil {
		return err
	}
	d.log.Warn().Str("device", s.name).Msg("given up before it could be recovered: I/O of its users fails")
	return nil
}
