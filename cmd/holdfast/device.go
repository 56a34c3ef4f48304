package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/api"
	"holdfast/ploop"
)

// queryLimit bounds a question to the manager, which answers those at once.
const queryLimit = 30 * time.Second

func client(c *cli.Context) *api.Client { return api.NewClient(runDir(c)) }

// deviceClient is for questions and orders about one device: they go to its own server while there
// is no manager.
func deviceClient(c *cli.Context, name string) *api.Client {
	d := client(c)
	ctx, cancel := context.WithTimeout(c.Context, queryLimit)
	defer cancel()
	_, err := d.Daemon(ctx)
	if api.CodeOf(err) != api.CodeUnreachable || errors.Is(err, fs.ErrPermission) || api.CheckName(name) != nil {
		return d
	}
	server := api.NewServerClient(runDir(c), name)
	if _, err := server.Server(ctx); err != nil {
		return d // whose error says what is missing
	}
	fmt.Fprintf(c.App.ErrWriter, "holdfast: the manager is away (%s): the server of device %q answers\n", oneLine(err.Error()), name)
	return server
}

func createCommand() *cli.Command {
	return &cli.Command{
		Name: "create", Usage: "serve images as a block device and print its path", ArgsUsage: "NAME",
		Description: "Give --image once for each image of the stack, base first; only the last is written to.\n" +
			"A raw base is given as raw@FILE.",
		Flags: []cli.Flag{
			&cli.GenericFlag{Name: "image", Aliases: []string{"i"}, Usage: "`FILE`, base first (repeatable)", Value: new(fileNames)},
			&cli.BoolFlag{Name: "read-only", Aliases: []string{"r"}, Usage: "write to no image"},
			damagedFlag("with --read-only, serve a damaged image: reads of what it has lost fail"),
			&cli.IntFlag{Name: "queues", Usage: "`N` queues, each with a thread", DefaultText: "one per processor, at most 4"},
			&cli.IntFlag{Name: "depth", Usage: "`N` requests at once in a queue", DefaultText: "128"},
			&cli.StringFlag{Name: "resume", Aliases: []string{"recovery"}, Usage: "`HOW` a standby ends: manual (by replace) or reopen (also by itself, when the same files return)", Value: api.ResumeManual},
			&cli.DurationFlag{Name: "standby-timeout", Usage: "fail what is held after `TIME` in standby", DefaultText: "never"},
			&cli.StringFlag{Name: "standby-errors", Usage: "`ERRORS` of the storage that lead to standby", DefaultText: "those of storage that is lost"},
			&cli.StringFlag{Name: "recover-policy", Usage: "`WHAT` becomes of I/O while the device can't be served again after its server's death: wait, or fail", Value: api.RecoverWait},
			&cli.DurationFlag{Name: "recover-timeout", Usage: "with the recover policy fail, fail I/O after `TIME`", DefaultText: api.DefaultRecoverTimeout.String()},
			&cli.StringFlag{Name: "on-standby", Usage: "run the program `FILE` when the device goes to standby"},
			&cli.StringFlag{Name: "on-resumed", Aliases: []string{"on-recovered"}, Usage: "run the program `FILE` when it resumes from it"},
			&cli.BoolFlag{Name: "persist", Usage: "create the device again after a reboot, until it is removed"},
			&cli.StringFlag{Name: "data-path", Usage: "`PATH` of the data: auto (the best the kernel has), copy or zero-copy", Value: "auto"},
			&cli.StringFlag{Name: "logical-block-size", Usage: "the device's smallest unit, `SIZE`: 512, 1K, 2K or 4K", DefaultText: "512"},
			jsonFlag(), runDirFlag(),
		},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "NAME")
			if err != nil {
				return err
			}
			spec := api.Spec{Name: args[0], ReadOnly: c.Bool("read-only"), Damaged: c.Bool("damaged"), Queues: c.Int("queues"), Depth: c.Int("depth"), DataPath: c.String("data-path"), Persist: c.Bool("persist")}
			for _, f := range []string{"queues", "depth"} {
				if c.IsSet(f) && c.Int(f) < 1 {
					return usagef("%s: --%s %d: want at least 1", commandName(c), f, c.Int(f))
				}
			}
			if c.IsSet("logical-block-size") {
				n, err := parseSize(c.String("logical-block-size"))
				if err != nil || n < ploop.SectorSize || n > 4096 || n&(n-1) != 0 {
					return usagef("%s: --logical-block-size %s: want 512, 1K, 2K or 4K", commandName(c), quote(c.String("logical-block-size")))
				}
				spec.LogicalBlockSize = int(n)
			}
			if spec.Images, err = imageRefs(*c.Generic("image").(*fileNames)); err != nil {
				return err
			}
			if len(spec.Images) == 0 {
				return usagef("%s: --image is missing", commandName(c))
			}
			if err := standbySpec(c, &spec); err != nil {
				return err
			}
			if err := recoverSpec(c, &spec); err != nil {
				return err
			}
			if spec.Damaged && !spec.ReadOnly {
				return usagef("%s: --damaged is for --read-only devices", commandName(c))
			}
			warnOfParent(c, spec.Images)
			dev, err := client(c).Create(c.Context, spec)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, dev)
			}
			_, err = fmt.Fprintln(c.App.Writer, dev.Path)
			return err
		},
	}
}

// standbySpec fills in what create's flags say of standby.
func standbySpec(c *cli.Context, spec *api.Spec) error {
	if spec.StandbyTimeout = api.Duration(c.Duration("standby-timeout")); c.IsSet("standby-timeout") && spec.StandbyTimeout <= 0 {
		return usagef("%s: --standby-timeout %v: want more than 0", commandName(c), time.Duration(spec.StandbyTimeout))
	}
	if spec.Resume = c.String("resume"); spec.Resume == api.ResumeManual {
		spec.Resume = ""
	}
	if errs := c.String("standby-errors"); errs != "" {
		spec.StandbyErrors = strings.Split(errs, ",")
	}
	for flag, path := range map[string]*string{"on-standby": &spec.OnStandby, "on-resumed": &spec.OnResumed} {
		if c.String(flag) == "" {
			continue
		}
		var err error
		if *path, err = filepath.Abs(c.String(flag)); err != nil {
			return err
		}
	}
	return nil
}

// fileNames is a repeatable flag that keeps every byte of a name: cli's own
// trims blanks and mends what is not UTF-8.
type fileNames []string

func (f *fileNames) Set(s string) error {
	if s != serialized {
		*f = append(*f, s)
	}
	return nil
}

func (f *fileNames) String() string { return strings.Join(*f, " ") }
func (f *fileNames) Get() any       { return []string(*f) }

// serialized is what cli copies from a flag to its alias, by Set. Both are this
// one value, so there is nothing to copy. No argument has a NUL.
const serialized = "\x00"

// Serialize makes cli copy something else than the String.
func (f *fileNames) Serialize() string { return serialized }

// imageRefs reads images as given by a user, and makes their paths absolute:
// the manager has another working directory.
func imageRefs(args []string) ([]ploop.ImageRef, error) {
	refs := make([]ploop.ImageRef, 0, len(args))
	for _, a := range args {
		ref, err := ploop.ParseImageRef(a)
		if err != nil {
			return nil, usagef("image %q: %v", a, err)
		}
		if ref.Path, err = filepath.Abs(ref.Path); err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

func showCommand() *cli.Command {
	return &cli.Command{
		Name: "show", Usage: "show all about a device", ArgsUsage: "NAME",
		Flags: []cli.Flag{jsonFlag(), runDirFlag()},
		Action: func(c *cli.Context) error {
			args, err := deviceArguments(c, "NAME")
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context, queryLimit)
			defer cancel()
			dev, err := deviceClient(c, args[0]).Device(ctx, args[0])
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, dev)
			}
			return deviceTree(dev).print(c.App.Writer)
		},
	}
}

func removeCommand() *cli.Command {
	return &cli.Command{
		Name: "remove", Aliases: []string{"rm"}, Usage: "take a device away and close its images cleanly", ArgsUsage: "NAME",
		Description: "A device in use is only removed with --force: its users' I/O fails from then on.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "also if it is in use"},
			runDirFlag(),
		},
		Action: func(c *cli.Context) error {
			args, err := deviceArguments(c, "NAME")
			if err != nil {
				return err
			}
			return deviceClient(c, args[0]).Remove(c.Context, args[0], c.Bool("force"))
		},
	}
}
