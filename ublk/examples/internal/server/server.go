// Package server is what the example servers have in common: the command line, and a
// device's life from Open to Stop.
//
// A server prints one line to standard output once the block device is there,
//
//	device=/dev/ublkb0 data_path=zero-copy queues=1 depth=128 size=1073741824
//
// serves until SIGINT or SIGTERM, or until somebody else stops the device, then removes it, and
// prints what it was asked for:
//
//	reads=4711 writes=42 flushes=7 discards=0 write_zeroes=0
//
// It exits with 0 then, and leaves no device behind. An error is one line on standard error,
// and exit code 1; a wrong command line is exit code 2. A second signal ends it at once, and the
// driver removes the device.
package server

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/ublk"
)

// A Target is who serves a device, and from what: File, if any, comes into the first slot of
// the queues' tables of registered files.
type Target struct {
	Handler ublk.Handler
	File    *os.File
}

// Main is a server's main function, on a command line of flags and as many names as it wants. open
// gets a Config with what the flags say, and completes it. Flags of its own are defined before.
func Main(names string, open func(cfg *ublk.Config) (Target, error)) {
	cfg := ublk.Config{}
	flag.IntVar(&cfg.ID, "id", -1, "`number` of the device; -1: the driver chooses")
	flag.IntVar(&cfg.Queues, "queues", 1, "`number` of queues, each with a thread")
	flag.IntVar(&cfg.Depth, "depth", 128, "`number` of requests in flight per queue")
	onlyCopy := flag.Bool("copy", false, "have the driver copy (default: zero copy where the driver has it)")
	zeroCopy := flag.Bool("zero-copy", false, "fail where the driver has no zero copy")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: %s [flags] %s\n", name(), names)
		flag.PrintDefaults()
	}
	flag.Parse()
	switch {
	case flag.NArg() != len(strings.Fields(names)):
		flag.Usage()
		os.Exit(2)
	case *onlyCopy && *zeroCopy:
		usage(errors.New("-copy and -zero-copy exclude each other"))
	case *onlyCopy:
		cfg.DataPath = ublk.Copy
	case *zeroCopy:
		cfg.DataPath = ublk.ZeroCopy
	}
	interrupted, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(interrupted, stop) // the next one kills
	err := serve(interrupted, cfg, open)
	var config *ublk.ConfigError
	switch {
	case errors.As(err, &config):
		usage(err)
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s: %v\n", name(), err)
		os.Exit(1)
	}
}

func name() string { return filepath.Base(os.Args[0]) }

// usage ends the program for a command line that can't be had.
func usage(err error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", name(), err)
	os.Exit(2)
}

// serve serves a device until ctx ends.
func serve(ctx context.Context, cfg ublk.Config, open func(cfg *ublk.Config) (Target, error)) error {
	target, err := open(&cfg)
	if err != nil {
		return err
	}
	if target.File != nil {
		defer target.File.Close() // after Stop: the queues' tables have it until then
		cfg.Files = 1
	}
	if err := ublk.ProtectProcess(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: not safe when memory is short: %v\n", name(), err)
	}
	ctl, err := ublk.Open("")
	if err != nil {
		return err
	}
	defer ctl.Close()
	dev, err := ctl.Create(ctx, cfg, target.Handler)
	if err != nil {
		return unless(ctx, err)
	}
	if target.File != nil {
		err = dev.SetFile(0, int(target.File.Fd()))
	}
	if err == nil {
		err = dev.Start(ctx)
	}
	if err == nil {
		cfg = dev.Config() // as it came to be
		fmt.Printf("device=%s data_path=%v queues=%d depth=%d size=%d\n", dev.Path(), cfg.DataPath, dev.Info().Queues, dev.Info().Depth, cfg.Size)
		select {
		case <-ctx.Done():
		case <-dev.Done(): // somebody else's STOP_DEV
		}
	}
	// Not with ctx, which may have ended. It waits for the requests in flight.
	live := err == nil
	if err = errors.Join(unless(ctx, err), dev.Stop(context.Background())); live && err == nil {
		s := dev.Stats()
		fmt.Printf("reads=%d writes=%d flushes=%d discards=%d write_zeroes=%d\n", s.Reads, s.Writes, s.Flushes, s.Discards, s.WriteZeroes)
	}
	return err
}

// unless is err, if it isn't what a signal brought about.
func unless(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	return err
}
