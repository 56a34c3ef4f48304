package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	"holdfast/manager"
	"holdfast/manager/launch"
	"holdfast/manager/target"
	"holdfast/state"
)

func daemonCommand() *cli.Command {
	return &cli.Command{
		Name:  "daemon",
		Usage: "manage this host's devices until a signal ends it",
		Description: "Each device is served by a process of its own, holdfast-serve. Where systemd is there and\n" +
			"knows holdfast-device@.service, it starts these, and they outlive the manager however it ends.\n" +
			"Elsewhere the manager starts them, and SIGTERM or SIGINT ends them first: devices that nobody\n" +
			"uses are removed cleanly; those in use are reported and kept until released. A second\n" +
			"signal removes them too: their I/O fails, their images are flushed and closed cleanly. One\n" +
			"more ends the manager at once, and no server. SIGUSR2 starts the manager's program anew, in\n" +
			"the same process, and touches no device.",
		Flags: []cli.Flag{
			runDirFlag(),
			&cli.StringFlag{Name: "state-dir", Usage: "`DIR` that remembers devices", Value: api.DefaultStateDir, EnvVars: []string{"HOLDFAST_STATE_DIR"}},
			&cli.StringFlag{Name: "launcher", Usage: "who starts servers: systemd, fork (the manager itself) or auto", Value: launcherAuto},
			&cli.StringFlag{Name: "serve-binary", Usage: "`FILE` of the program holdfast-serve, for --launcher fork", DefaultText: "beside this program", EnvVars: []string{"HOLDFAST_SERVE_BINARY"}},
			&cli.StringFlag{Name: "metrics-listen", Usage: "serve figures for Prometheus on `HOST:PORT`"},
			&cli.StringFlag{Name: "targets", Usage: "`KINDS` of targets to watch, of lio, scst and tgt; or none", DefaultText: "lio,scst,tgt"},
			&cli.StringFlag{Name: "configfs", Usage: "`DIR` of the kernel's configfs, for LIO", Value: "/sys/kernel/config"},
			&cli.StringFlag{Name: "scst-root", Usage: "`DIR` of SCST's tree", Value: "/sys/kernel/scst_tgt"},
			&cli.BoolFlag{Name: "no-sysfs", Usage: "don't mount the attribute tree on RUN-DIR/sys"},
			&cli.DurationFlag{Name: "stop-timeout", Usage: "go on after `TIME` as after a second signal", DefaultText: "never"},
			&cli.StringFlag{Name: "log-format", Usage: "json or console", DefaultText: "console on a terminal, otherwise json"},
			&cli.StringFlag{Name: "log-level", Usage: "debug, info, warn or error", Value: "info"},
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			log, err := newLog(c.App.ErrWriter, c.String("log-format"), c.String("log-level"))
			if err != nil {
				return err
			}
			cfg, err := daemonConfig(c, log)
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
		},
	}
}

// daemonConfig reads the flags that are the manager's.
func daemonConfig(c *cli.Context, log zerolog.Logger) (cfg manager.Config, err error) {
	cfg = manager.Config{Version: version(), Build: build.ID(), Log: log}
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

func newLog(w io.Writer, format, level string) (zerolog.Logger, error) {
	none := zerolog.Nop()
	lvl, err := zerolog.ParseLevel(level)
	if err != nil || lvl < zerolog.DebugLevel || lvl > zerolog.ErrorLevel {
		return none, usagef("--log-level %q is not one of debug, info, warn, error", level)
	}
	if format == "" {
		format = "json"
		if isTerminal(w) {
			format = "console"
		}
	}
	switch format {
	case "json":
	case "console":
		w = zerolog.ConsoleWriter{Out: w, NoColor: !isTerminal(w), TimeFormat: time.RFC3339}
	default:
		return none, usagef("--log-format %q is neither json nor console", format)
	}
	return zerolog.New(zerolog.SyncWriter(w)).Level(lvl).With().Timestamp().Logger(), nil
}

// Who starts servers.
const (
	launcherAuto    = "auto"
	launcherSystemd = "systemd"
	launcherFork    = "fork"
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
func chooseLauncher(ctx context.Context, name, program string, cfg manager.Config, limit time.Duration, level string) (launch.Launcher, error) {
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
		Wanted: manager.Wanted(cfg.RunDir, cfg.StateDir),
	})
}

// manage runs the manager to its end.
func manage(cfg manager.Config, servers launch.Launcher) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	anew := make(chan os.Signal, 1)
	signal.Notify(anew, syscall.SIGUSR2)
	// A log whose reader died must not take the manager with it, nor a closed terminal.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	before, err := succeedPredecessor()
	if err != nil {
		return err
	}
	os.Remove(filepath.Join(cfg.RunDir, "shutdown")) // see systemd/holdfast-shutdown.service; /run may outlive a boot
	m, err := manager.Start(cfg)
	if err != nil {
		return err
	}
	defer m.Close()
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	cfg.Log.Info().Str("version", cfg.Version).Str("socket", m.SocketPath()).Str("state_dir", cfg.StateDir).Msg("ready")
	go before.notify(cfg.RunDir)
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
	return nil // the servers go on: they are systemd's, or the next manager's
}

// endServers ends the servers in order, while their devices' users are waited for. Each more signal
// is passed on to them.
func endServers(m *manager.Manager, runDir string, signals <-chan os.Signal, log zerolog.Logger) error {
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
