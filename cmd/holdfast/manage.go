package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"holdfast/api"
	"holdfast/internal/build"
	"holdfast/internal/thp"
	mgr "holdfast/manager"
	"holdfast/manager/launch"
	"holdfast/manager/target"
	"holdfast/state"
)

// manageDevices is the daemon that leaves devices to servers of their own.
func manageDevices(c *cli.Context) error {
	log, err := newLog(c.App.ErrWriter, c.String("log-format"), c.String("log-level"))
	if err != nil {
		return err
	}
	cfg, err := managerConfig(c, log)
	if err != nil {
		return err
	}
	limit := c.Duration("stop-timeout")
	if limit < 0 {
		return usagef("--stop-timeout %v: want 0 (never) or more", limit)
	}
	servers, err := chooseLauncher(c.Context, c.String("launcher"), serveProgram(c.String("serve-binary")), cfg, limit, c.String("log-level"))
	if err != nil {
		return err
	}
	defer servers.Close()
	cfg.Launcher = servers
	return manage(cfg, servers)
}

// managerConfig reads the flags that are the manager's.
func managerConfig(c *cli.Context, log zerolog.Logger) (cfg mgr.Config, err error) {
	cfg = mgr.Config{Version: version(), Build: build.ID(), Log: log}
	// Absolute, as they are shown to clients with other directories.
	if cfg.RunDir, err = filepath.Abs(runDir(c)); err != nil {
		return cfg, err
	}
	stateDir := c.String("state-dir")
	if stateDir == "" {
		stateDir = api.DefaultStateDir
	}
	if cfg.StateDir, err = filepath.Abs(stateDir); err != nil {
		return cfg, err
	}
	cfg.MetricsListen, cfg.NoTree = c.String("metrics-listen"), c.Bool("no-sysfs")
	cfg.TargetRoots = target.Roots{Configfs: c.String("configfs"), SCST: c.String("scst-root")}
	switch kinds := c.String("targets"); kinds {
	case "":
	case "none":
		cfg.Targets = []string{}
	default:
		cfg.Targets = strings.Split(kinds, ",")
	}
	return cfg, nil
}

// Who starts servers.
const (
	launcherAuto    = "auto"
	launcherSystemd = "systemd"
	launcherFork    = "fork"
	launcherNone    = "none" // nobody: the daemon serves all devices itself
)

// serveProgram is the program of servers: beside this one, and called like it.
func serveProgram(file string) string {
	if file != "" {
		return file
	}
	self, err := os.Executable()
	if err != nil {
		return "holdfast-serve"
	}
	return filepath.Join(filepath.Dir(self), strings.Replace(filepath.Base(self), "holdfast", "holdfast-serve", 1))
}

// chooseLauncher makes the launcher of that name. auto is systemd where it can be had for the
// default directories, which are what its units have.
func chooseLauncher(ctx context.Context, name, program string, cfg mgr.Config, limit time.Duration, level string) (launch.Launcher, error) {
	switch name {
	case launcherAuto:
		if cfg.RunDir != api.DefaultRunDir || cfg.StateDir != api.DefaultStateDir {
			break
		}
		err := launch.Detect(ctx)
		if err == nil {
			return launch.NewSystemd(), nil
		}
		// Servers that are its own now would be in the way of systemd's later.
		if !errors.Is(err, launch.ErrAbsent) && os.Getenv("NOTIFY_SOCKET") != "" {
			return nil, fmt.Errorf("who is to start servers can't be found out: %w; --launcher says", err)
		}
	case launcherSystemd:
		if err := launch.Detect(ctx); err != nil {
			return nil, fmt.Errorf("--launcher systemd: %w", err)
		}
		return launch.NewSystemd(), nil
	case launcherFork:
	default:
		return nil, usagef("--launcher %q is not one of auto, systemd, fork", name)
	}
	program, err := filepath.Abs(program)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("the program of servers: %w; --serve-binary says where it is", err)
	}
	// Servers inherit that, and needn't start themselves anew for it.
	if _, err := thp.Disable(); err != nil {
		cfg.Log.Debug().Err(err).Msg("huge pages could not be turned off")
	}
	return launch.NewFork(launch.ForkConfig{
		Binary: program, Env: forServers(), Dir: filepath.Join(cfg.RunDir, "devices"), Log: cfg.Log,
		Args:   []string{"--run-dir", cfg.RunDir, "--state-dir", cfg.StateDir, "--stop-timeout", limit.String(), "--log-level", level},
		Wanted: mgr.Wanted(cfg.RunDir, cfg.StateDir),
	})
}

// manage runs the daemon to its end.
func manage(cfg mgr.Config, servers launch.Launcher) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	anew := make(chan os.Signal, 1)
	signal.Notify(anew, syscall.SIGUSR2)
	// A log whose reader died must not take the daemon with it, nor a closed terminal.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	os.Remove(filepath.Join(cfg.RunDir, "shutdown")) // see systemd/holdfast-shutdown.service; /run may outlive a boot
	m, err := mgr.Start(cfg)
	if err != nil {
		return err
	}
	defer m.Close()
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	cfg.Log.Info().Str("version", cfg.Version).Str("socket", m.SocketPath()).Str("state_dir", cfg.StateDir).Msg("ready")
	starter := newServiceManager(cfg.Log)
	starter.send(sd.SdNotifyReady)
	done := make(chan struct{})
	defer close(done)
	go starter.keep(func() { m.Info() }, done)
	select {
	case err := <-served:
		return fmt.Errorf("the control socket failed: %w", err)
	case <-anew:
		socket, err := m.PassedSocket()
		m.Close()
		servers.Close()
		return fmt.Errorf("the program could not be started anew: %w", errors.Join(err, again(socket)))
	case sig := <-signals:
		cfg.Log.Info().Str("signal", sig.String()).Msg("stopping")
	}
	starter.send(sd.SdNotifyStopping)
	if _, ours := servers.(*launch.Fork); ours && starter.goesDown() {
		return endServers(m, cfg.RunDir, signals, cfg.Log)
	}
	return nil // the servers go on: they are systemd's, or the next daemon's
}

// endServers ends the servers in order, while their devices' users are waited for. Each more signal
// is passed on to them.
func endServers(m *mgr.Manager, runDir string, signals <-chan os.Signal, log zerolog.Logger) error {
	ended := make(chan error, 1)
	go func() {
		_, err := m.Stop(context.Background(), api.StopRequest{})
		ended <- err
	}()
	for n := 2; ; n++ {
		select {
		case err := <-ended:
			if err == nil {
				log.Info().Msg("stopped")
			}
			return err
		case sig := <-signals:
			if n > 2 {
				log.Error().Str("signal", sig.String()).Msg("one more signal: ending at once; servers that have not ended go on by themselves")
				return exitStatus(exitFailure)
			}
			log.Warn().Str("signal", sig.String()).Msg("second signal: users of devices are not waited for any more")
			signalServers(runDir, log)
		}
	}
}

// signalServers has all servers wait for users no longer.
func signalServers(runDir string, log zerolog.Logger) {
	entries, err := os.ReadDir(state.Run(runDir).Devices())
	if err != nil {
		log.Error().Err(err).Msg("the servers can't be told")
	}
	for _, e := range entries {
		if pid, held := state.Probe(runDir, e.Name()); held && pid > 0 {
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
				log.Error().Err(err).Str("device", e.Name()).Msgf("its server, process %d, can't be told", pid)
			}
		}
	}
}
