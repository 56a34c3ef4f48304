package control

import (
	"context"
	"fmt"

	"holdfast/api"
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
	var id int
	var failing failing
	problem := s.problem
	if waits {
		id, failing = s.rec.ID, s.failing
	}
	d.mu.Unlock()
	if !waits {
		return d.removeLive(ctx, s, force, true)
	}
	users, err := d.scans.Of(map[int]string{id: fmt.Sprintf("/dev/ublkb%d", id)})
	if err == nil && len(users[id]) == 0 {
		d.log.Info().Str("device", s.name).Msgf("left to the next daemon: %s", problem)
		return nil
	}
	if !force {
		who := "perhaps somebody who cannot be seen from here"
		if len(users[id]) > 0 {
			who = userList(users[id])
		}
		return api.Errorf(api.CodeBusy, "device %q waits to be recovered (%s), and with it %s", s.name, problem, who)
	}
	if err := d.giveUp(ctx, s, id, failing); err != nil {
		return err
	}
	d.log.Warn().Str("device", s.name).Msg("given up before it could be recovered: I/O of its users fails")
	return nil
}
