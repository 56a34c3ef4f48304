package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/control"
	"holdfast/internal/failpoint"
	"holdfast/internal/spawner"
	"holdfast/manager/target"
	"holdfast/ublk"
)

func daemonCommand() *cli.Command {
	return &cli.Command{
		Name:  "daemon",
		Usage: "serve devices until a signal ends it",
		Description: "On SIGTERM or SIGINT, devices that nobody uses are removed cleanly; those in use are reported\n" +
			"and kept until released. A second signal removes them too: their I/O fails, their images\n" +
			"are flushed and closed cleanly. One more ends the daemon at once.",
		Flags: []cli.Flag{
			runDirFlag(),
			&cli.StringFlag{Name: "state-dir", Usage: "`DIR` that remembers devices", Value: api.DefaultStateDir, EnvVars: []string{"HOLDFAST_STATE_DIR"}},
			&cli.StringFlag{Name: "launcher", Usage: "who starts a server for each device (a preview): systemd, fork (the daemon itself), auto, or none: the daemon serves them all", Value: launcherNone},
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
			if c.String("launcher") != launcherNone {
				return manageDevices(c)
			}
			log, err := newLog(c.App.ErrWriter, c.String("log-format"), c.String("log-level"))
			if err != nil {
				return err
			}
			cfg := control.Config{Version: version(), Log: log}
			// Absolute, as they are shown to clients with other directories.
			if cfg.RunDir, err = filepath.Abs(runDir(c)); err != nil {
				return err
			}
			stateDir := c.String("state-dir")
			if stateDir == "" {
				stateDir = api.DefaultStateDir
			}
			if cfg.StateDir, err = filepath.Abs(stateDir); err != nil {
				return err
			}
			if cfg.Binary, err = os.Executable(); err != nil {
				return err
			}
			cfg.Args = os.Args[1:]
			cfg.MetricsListen, cfg.NoTree = c.String("metrics-listen"), c.Bool("no-sysfs")
			cfg.TargetRoots = target.Roots{Configfs: c.String("configfs"), SCST: c.String("scst-root")}
			switch kinds := c.String("targets"); kinds {
			case "":
			case "none":
				cfg.Targets = []string{}
			default:
				cfg.Targets = strings.Split(kinds, ",")
			}
			limit := c.Duration("stop-timeout")
			if limit < 0 {
				return usagef("--stop-timeout %v: want 0 (never) or more", limit)
			}
			return serve(cfg, limit)
		},
	}
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

// startSpawner is another one in a test that does without.
var startSpawner = spawner.Start

// serve runs the daemon to its end. Once told to stop, it waits for the devices' users for
// limit; 0: for ever. What is in use then is left to the next daemon if there will be one, as
// if this one had been killed.
func serve(cfg control.Config, limit time.Duration) error {
	tuneRuntime(cfg.Log)
	// Before anything is open, also what only this process is protected from.
	var err error
	if cfg.Spawner, err = startSpawner(func(err error) {
		cfg.Log.Error().Err(err).Msg("no hook can be run, and no upgrade; devices are served as before, and wait for this daemon while it is restarted")
	}); err != nil {
		return err
	}
	defer cfg.Spawner.Close()
	manager := newManager(cfg.Log, cfg.Spawner)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	upgrade := make(chan os.Signal, 1)
	signal.Notify(upgrade, syscall.SIGUSR2)
	// A log whose reader died must not take devices with it, nor a closed
	// terminal.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	cfg.Prepare = func() {
		if failpoint.Off("no-protect") {
			cfg.Log.Warn().Msg("not protected from memory pressure, for a test")
		} else if err := ublk.ProtectProcess(); err != nil {
			cfg.Log.Warn().Msgf("memory pressure may stall devices whose images lie on this machine: %v", err)
		}
	}
	d, err := control.Start(cfg)
	if err != nil {
		return err
	}
	defer d.Close()
	served := make(chan error, 1)
	go func() { served <- d.Serve() }()
	cfg.Log.Info().Str("version", cfg.Version).Str("socket", d.SocketPath()).Str("state_dir", cfg.StateDir).Msg("ready")
	done := make(chan struct{})
	defer close(done)
	stopping := make(chan struct{})
	go manager.ready(d.Restored(), stopping)
	go manager.keep(d.Pulse, done)
	go d.UpgradeOn(upgrade)

	select {
	case <-d.HandedOver():
		if d.Heir() == 0 {
			return errors.New("an upgrade has failed, and its end is this daemon's, too: start it again, its devices wait")
		}
		manager.handedOver(d.Heir())
		return nil
	case err := <-served:
		// Without the socket nobody could control the devices: end in order.
		cfg.Log.Error().Err(err).Msg("the control socket failed")
	case sig := <-signals:
		cfg.Log.Info().Str("signal", sig.String()).Msg("stopping")
	}
	close(stopping)
	manager.stopping()
	force := make(chan struct{})
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	go func() {
		p := patience{log: cfg.Log, signals: signals, limit: limit, willRestart: manager.willRestart, sync: unix.Sync}
		if !p.wait() {
			leave()
			return
		}
		close(force)
		sig := <-signals
		cfg.Log.Error().Str("signal", sig.String()).Msg("one more signal: ending at once, what is still served is lost")
		os.Exit(exitFailure)
	}()
	err = d.Shutdown(ctx, force)
	if pid := d.Heir(); pid != 0 {
		cfg.Log.Info().Int("pid", pid).Msg("an upgrade was under way: the new daemon is told to stop")
		manager.handedOver(pid)
		return syscall.Kill(pid, syscall.SIGTERM)
	}
	if ctx.Err() != nil {
		cfg.Log.Warn().Msgf("devices are still in use after %v (--stop-timeout): they are left as they are, and wait for the next daemon", limit)
		return nil
	}
	if err == nil {
		cfg.Log.Info().Msg("stopped")
	}
	return err
}
