// Package process is the program holdfast-serve: the command line, signals and runtime of a process
// that serves one device.
package process

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/internal/build"
	"holdfast/internal/failpoint"
	"holdfast/server"
	"holdfast/ublk"
)

const (
	exitFailure = 1
	exitUsage   = 2
)

// Main is the whole program. It gives the exit code, and may replace the process by one of the same
// program before that.
func Main(args []string) int {
	cfg, limit, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "holdfast-serve:", err)
		return exitUsage
	}
	lean(cfg.Log)
	tune()
	return run(cfg, limit)
}

// parse reads the command line.
func parse(args []string) (cfg server.Config, limit time.Duration, err error) {
	f := flag.NewFlagSet("holdfast-serve", flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprintln(f.Output(), "usage: holdfast-serve [flags] NAME\n\nServes the device NAME. It is started by 'holdfast daemon', or by systemd.")
		f.PrintDefaults()
	}
	env := func(name, otherwise string) string {
		if v := os.Getenv(name); v != "" {
			return v
		}
		return otherwise
	}
	run := f.String("run-dir", env("HOLDFAST_RUN_DIR", api.DefaultRunDir), "`directory` of sockets and locks")
	state := f.String("state-dir", env("HOLDFAST_STATE_DIR", api.DefaultStateDir), "`directory` that remembers devices")
	level := f.String("log-level", env("HOLDFAST_LOG_LEVEL", "info"), "debug, info, warn or error")
	stopDefault, err := time.ParseDuration(env("HOLDFAST_STOP_TIMEOUT", "0s"))
	if err != nil {
		return cfg, 0, fmt.Errorf("HOLDFAST_STOP_TIMEOUT: %w", err)
	}
	stop := f.Duration("stop-timeout", stopDefault, "how long a server that is told to stop waits for users of its device; 0: for ever")
	version := f.Bool("version", false, "print the version")
	if err := f.Parse(args); err != nil {
		return cfg, 0, err
	}
	if *version {
		fmt.Println("holdfast-serve", build.Version())
		return cfg, 0, flag.ErrHelp
	}
	if f.NArg() != 1 {
		return cfg, 0, fmt.Errorf("want the name of one device, got %d arguments", f.NArg())
	}
	cfg = server.Config{Name: f.Arg(0), Version: build.Version(), Build: build.ID()}
	if err := api.CheckName(cfg.Name); err != nil {
		return cfg, 0, err
	}
	if *stop < 0 {
		return cfg, 0, fmt.Errorf("--stop-timeout %v: want 0 (for ever) or more", *stop)
	}
	if cfg.RunDir, err = filepath.Abs(*run); err != nil {
		return cfg, 0, err
	}
	if cfg.StateDir, err = filepath.Abs(*state); err != nil {
		return cfg, 0, err
	}
	lvl, err := zerolog.ParseLevel(*level)
	if err != nil || lvl < zerolog.DebugLevel || lvl > zerolog.ErrorLevel {
		return cfg, 0, fmt.Errorf("--log-level %q is not one of debug, info, warn, error", *level)
	}
	cfg.Log = zerolog.New(zerolog.SyncWriter(os.Stderr)).Level(lvl).With().Timestamp().Logger()
	return cfg, *stop, nil
}

// run serves until the device is over, or a signal ends it. Once told to stop it waits for the
// device's users for limit; 0: for ever.
func run(cfg server.Config, limit time.Duration) int {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	// A log whose reader died must not take the device with it, nor a closed terminal.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	cfg.Locked = func() {
		if failpoint.Off("no-protect") {
			cfg.Log.Warn().Msg("not protected from memory pressure, for a test")
		} else if err := ublk.ProtectProcess(); err != nil {
			cfg.Log.Warn().Msgf("memory pressure may stall the device if its images lie on this machine: %v", err)
		}
	}
	cfg.Served = served
	force, depart := make(chan struct{}), make(chan struct{})
	cfg.Force, cfg.Depart = force, depart
	notify := newNotifier(cfg.Log)
	done := make(chan struct{})
	defer close(done)
	cfg.Ready = func(unanswered func() time.Duration) {
		notify.ready()
		go notify.keep(unanswered, done)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		sig := <-signals
		cfg.Log.Info().Str("signal", sig.String()).Msg("stopping")
		notify.stopping()
		stop()
		p := patience{log: cfg.Log, signals: signals, limit: limit, succeeded: func() bool { return succeeded(cfg.RunDir) }, sync: unix.Sync}
		if p.wait() {
			close(force)
		} else {
			close(depart)
		}
		sig = <-signals
		cfg.Log.Error().Str("signal", sig.String()).Msg("one more signal: ending at once, and what is still served is lost")
		os.Exit(exitFailure)
	}()
	code, err := server.Serve(ctx, cfg)
	if err != nil {
		cfg.Log.Error().Err(err).Msg("the device can't be served")
	}
	return code
}

// succeeded says whether another server can be expected after this one: systemd has started it, and
// the machine isn't going down. A unit says that by a file (systemd/holdfast-shutdown.service), so
// that neither the manager nor a program is needed to find out.
func succeeded(runDir string) bool {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return false
	}
	_, err := os.Stat(filepath.Join(runDir, "shutdown"))
	return err != nil
}
