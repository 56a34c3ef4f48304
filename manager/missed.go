package manager

import (
	"context"
	"slices"

	"holdfast/api"
)

// due says whether a server is to be started now: one that was to be and could not, or that the
// launcher was to start at boot and could not, as the file system of an image was not there.
// Neither is tried again by anybody else. One that was stopped stays so.
func (p *peer) due(ctx context.Context) bool {
	o := p.observation()
	if o.state != api.ServerNone || p.all.stopped.Load() {
		return false
	}
	now := p.all.cfg.now()
	if since := now.Sub(o.tried); !o.tried.IsZero() && since >= 0 && since < p.all.cfg.pace.again {
		return false
	}
	if o.wanted {
		return true
	}
	launcher, ok := p.all.cfg.Launcher.(boots)
	if !ok || o.rec == nil || !o.rec.Spec.Persist || o.rec.BootID == p.all.boot {
		return false
	}
	p.set(func(o *observation) { o.tried = now })
	ctx, cancel := context.WithTimeout(ctx, p.all.cfg.pace.start)
	defer cancel()
	missed, err := launcher.Missed(ctx, p.name)
	if err != nil {
		p.all.log.Warn().Err(err).Str("device", p.name).Msg("whether its server was started at boot is not known")
	}
	return missed
}

// keepMounts has the launcher know where the device's images are: a replace, of which the server
// tells, may have moved them.
func (p *peer) keepMounts(ctx context.Context) {
	o := p.observation()
	if o.state != api.ServerUp || o.report == nil {
		return
	}
	paths, _ := o.images()
	if slices.Equal(paths, o.mounts) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, p.all.cfg.pace.start)
	defer cancel()
	if err := p.all.cfg.Launcher.Mounts(ctx, p.name, paths); err != nil {
		p.all.log.Error().Err(err).Str("device", p.name).Msg("it is served, and may not be after the next boot: where its images are could not be written down")
		return // and is tried again
	}
	p.set(func(o *observation) { o.mounts = paths })
}
