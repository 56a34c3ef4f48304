package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
)

// Create has a server started, and that create the device. When ctx ends first, the server takes
// the creation back.
func (m *Manager) Create(ctx context.Context, spec api.Spec) (*api.Device, error) {
	if err := api.CheckSpec(&spec); err != nil {
		return nil, err
	}
	if err := checkHooks(ctx, &spec); err != nil {
		return nil, err
	}
	if m.stopping.Load() {
		return nil, api.Errorf(api.CodeStopping, "the servers of all devices are being stopped, device %q was not created", spec.Name)
	}
	p := m.peers.acquire(spec.Name, true)
	defer m.peers.release(p)
	if err := m.mayCreate(ctx, p, &spec); err != nil {
		return nil, err
	}
	var paths []string
	for _, i := range spec.Images {
		paths = append(paths, i.Path)
	}
	if p.state() != api.ServerUp {
		if err := m.cfg.Launcher.Mounts(ctx, spec.Name, paths); err != nil {
			return nil, api.Errorf(api.CodeInternal, "device %q: %w", spec.Name, err)
		}
	}
	if err := p.ensure(ctx); err != nil {
		return nil, err
	}
	dev, err := p.client.CreateHere(ctx, spec)
	if err != nil {
		p.nudge()
		return nil, err
	}
	// It is as of now: who asked meanwhile was told of a device that is being created.
	p.answered(m.peers.question(), nil, dev)
	made := p.device()
	m.peers.shortenTimeout(ctx, p.name, dev.ID) // before anybody is told of the device
	if err := errors.Join(m.cfg.Launcher.Mounts(ctx, spec.Name, paths), m.cfg.Launcher.Enable(ctx, spec.Name, spec.Persist)); err != nil {
		m.log.Error().Err(err).Str("device", spec.Name).Msg("it is served, and may not be after the next boot")
	}
	if made != nil {
		return made, nil
	}
	return dev, nil
}

// mayCreate refuses what can be seen to be wrong from here: a name that is served, and a file that
// is another device's.
func (m *Manager) mayCreate(ctx context.Context, p *peer, spec *api.Spec) error {
	switch p.state() {
	case api.ServerUp, api.ServerNone, api.ServerStarting:
	default:
		return p.unreachable()
	}
	if dev := p.current(ctx); dev != nil {
		switch dev.State {
		case api.StateLost, api.StateEnded, api.StateWaiting:
		case api.StateCreating, api.StateRemoving, api.StateRecovering, api.StateUnrecovered, api.StateUnreleased:
			return api.Errorf(api.CodeConflict, "device %q is %s: wait for it, or 'holdfast remove --force %s'", spec.Name, dev.State, spec.Name)
		case api.StateSilent, api.StateDying:
			return p.unreachable()
		default:
			return api.Errorf(api.CodeExists, "device %q exists already, as %s", spec.Name, dev.Path)
		}
	}
	return m.conflict(spec)
}

// conflict says which device a file of a spec belongs to, by the paths that are known. The servers'
// claims say it of the files themselves.
func (m *Manager) conflict(spec *api.Spec) error {
	var mine []string
	for _, i := range spec.Images {
		mine = append(mine, i.Path)
	}
	for _, p := range m.peers.list() {
		if p.name == spec.Name {
			continue
		}
		o := p.observation()
		theirs, write := o.images()
		if path := overlap(mine, !spec.ReadOnly, theirs, write); path != "" {
			whose := "device"
			if dev := p.device(); dev != nil && dev.State == api.StateLost {
				whose = "the lost device"
			}
			return api.Errorf(api.CodeConflict, "image %q belongs to %s %q", path, whose, p.name)
		}
	}
	return nil
}

// hookProbe is how long the file of a hook may take to tell what it is.
const hookProbe = 5 * time.Second

// checkHooks refuses programs that can't be run. They may lie on storage that hangs.
func checkHooks(ctx context.Context, spec *api.Spec) error {
	for _, path := range []string{spec.OnStandby, spec.OnResumed} {
		if path == "" {
			continue
		}
		seen := make(chan error, 1)
		go func() { seen <- runnable(path) }()
		ctx, cancel := context.WithTimeout(ctx, hookProbe)
		var err error
		select {
		case err = <-seen:
		case <-ctx.Done():
			err = fmt.Errorf("its storage has not answered within %v: %w", hookProbe, ctx.Err())
		}
		cancel()
		if err != nil {
			return api.Errorf(api.CodeInvalid, "device %q: the hook %q can't be run: %w", spec.Name, path, err)
		}
	}
	return nil
}

func runnable(path string) error {
	fi, err := os.Stat(path)
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("not a file")
	}
	if err == nil {
		err = unix.Access(path, unix.X_OK)
	}
	return err
}
