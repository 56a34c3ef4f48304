package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/api"
	"holdfast/ploop"
)

func attachCommand() *cli.Command {
	return &cli.Command{
		Name: "attach", Usage: "take a lease on a device for a consumer that can wait", ArgsUsage: "NAME",
		Description: "While any consumer has a lease, and the standby check is on, errors of the device's storage are\n" +
			"held instead of told. Targets that the manager watches take their leases by themselves.",
		Flags:  []cli.Flag{consumerFlag(), runDirFlag()},
		Action: leaseAction((*api.Client).Attach),
	}
}

func detachCommand() *cli.Command {
	return &cli.Command{
		Name: "detach", Usage: "drop a consumer's lease on a device", ArgsUsage: "NAME",
		Description: "Without any lease the device's errors reach its users at once, those of held requests too.",
		Flags:       []cli.Flag{consumerFlag(), runDirFlag()},
		Action:      leaseAction((*api.Client).Detach),
	}
}

func consumerFlag() cli.Flag {
	return &cli.StringFlag{Name: "consumer", Usage: "`NAME` of the consumer"}
}

func leaseAction(do func(*api.Client, context.Context, string, string) (*api.Device, error)) cli.ActionFunc {
	return func(c *cli.Context) error {
		args, err := deviceArguments(c, "NAME")
		if err != nil {
			return err
		}
		if !c.IsSet("consumer") {
			return usagef("%s: --consumer is missing", commandName(c))
		}
		_, err = do(deviceClient(c, args[0]), c.Context, args[0], c.String("consumer"))
		return err
	}
}

func standbyCommand() *cli.Command {
	return &cli.Command{
		Name: "standby", Usage: "show or set a device's standby", ArgsUsage: "NAME [on|off|status]",
		Description: "status, or nothing, prints what the attribute reads: \"not supported\", \"on\" or \"off\". off gives up:\n" +
			"what is held fails with EIO. To go on without a loss, see 'holdfast replace'.",
		Flags: []cli.Flag{jsonFlag(), runDirFlag()},
		Action: func(c *cli.Context) error {
			args, err := deviceArguments(c, "NAME", "[on|off|status]")
			if err != nil {
				return err
			}
			on, set, err := onOff(c, args[1:])
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context, queryLimit)
			defer cancel()
			d := deviceClient(c, args[0])
			dev, err := d.BriefDevice(ctx, args[0])
			if err != nil {
				return err
			}
			was := dev
			if set {
				if dev, err = d.SetStandby(c.Context, args[0], on); err != nil {
					return err
				}
			}
			switch {
			case c.Bool("json"):
				return printJSON(c.App.Writer, dev.Standby)
			case set:
				return told(c, was, dev)
			}
			_, err = fmt.Fprintln(c.App.Writer, dev.Standby.Value)
			return err
		},
	}
}

// onOff reads a switch's argument; without one, or with status, nothing is to be set.
func onOff(c *cli.Context, args []string) (on, set bool, err error) {
	if len(args) == 0 {
		return false, false, nil
	}
	switch args[0] {
	case "on", "off":
		return args[0] == "on", true, nil
	case "status":
		return false, false, nil
	}
	return false, false, usagef("%s: %q is none of on, off, status", commandName(c), args[0])
}

// told says what a switch did.
func told(c *cli.Context, before, after *api.Device) error {
	text := "standby is " + after.Standby.Value
	switch {
	case after.Standby.Value == "on":
		text += fmt.Sprintf("; %s held", count(uint64(after.Standby.Held), "request"))
	case before.Standby.Value == "on":
		text += fmt.Sprintf("; %s held, which failed or are failing", plural(uint64(before.Standby.Held), "request was", "requests were"))
	}
	_, err := fmt.Fprintf(c.App.Writer, "%s: %s\n", quote(after.Name), text)
	return err
}

func standbyCheckCommand() *cli.Command {
	return &cli.Command{
		Name: "standby-check", Usage: "show or set the process-wide standby check", ArgsUsage: "[on|off|status]",
		Description: "Nothing is held while it is off. A target that the manager watches holds it on while it is there.\n" +
			"status, or nothing, shows it.",
		Flags: []cli.Flag{jsonFlag(), runDirFlag()},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "[on|off|status]")
			if err != nil {
				return err
			}
			on, set, err := onOff(c, args)
			if err != nil {
				return err
			}
			var key *api.KeyInfo
			if set {
				key, err = client(c).SetKey(c.Context, on)
			} else {
				key, err = standbyCheck(c)
			}
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, key)
			}
			text := "off"
			if key.On {
				text = "on, held by " + strings.Join(key.Holders, ", ")
			}
			_, err = fmt.Fprintln(c.App.Writer, text)
			return err
		},
	}
}

func standbyCheck(c *cli.Context) (*api.KeyInfo, error) {
	ctx, cancel := context.WithTimeout(c.Context, queryLimit)
	defer cancel()
	snap, err := client(c).Brief(ctx)
	if err != nil {
		return nil, err
	}
	return &snap.Key, nil
}

func replaceCommand() *cli.Command {
	return &cli.Command{
		Name: "replace", Usage: "put another file in the place of a device's, while its users wait", ArgsUsage: "NAME FILE",
		Description: "FILE must be the image that it replaces, by another path or copied, unless --force takes it as it\n" +
			"is. When the top is replaced, a standby ends, and what was held is served. A raw base is raw@FILE.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "level", Usage: "`N`, 0 is the base", DefaultText: "the top"},
			&cli.BoolFlag{Name: "top", Usage: "the image that is written to (default)"},
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "take FILE as it is, and for granted that nothing can be written to the old storage any more"},
			&cli.DurationFlag{Name: "drain", Usage: "wait for `TIME` for requests under way in the old file", Value: api.DefaultDrain},
			jsonFlag(), runDirFlag(),
		},
		Action: func(c *cli.Context) error {
			args, err := deviceArguments(c, "NAME", "FILE")
			if err != nil {
				return err
			}
			r := api.ReplaceRequest{Force: c.Bool("force"), Drain: api.Duration(c.Duration("drain"))}
			if c.IsSet("level") {
				level := c.Int("level")
				if r.Level = &level; level < 0 {
					return usagef("%s: --level %d: want 0 (the base) or more", commandName(c), level)
				}
				if c.Bool("top") {
					return usagef("%s: --level or --top, not both", commandName(c))
				}
			}
			if r.Drain < 0 {
				return usagef("%s: --drain %v: want 0 or more", commandName(c), time.Duration(r.Drain))
			}
			if r.Image, err = ploop.ParseImageRef(args[1]); err != nil {
				return usagef("image %q: %v", args[1], err)
			}
			if r.Image.Path, err = filepath.Abs(r.Image.Path); err != nil {
				return err
			}
			dev, err := deviceClient(c, args[0]).Replace(c.Context, args[0], r)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, dev)
			}
			level := len(dev.Images) - 1
			if r.Level != nil {
				level = *r.Level
			}
			_, err = fmt.Fprintf(c.App.Writer, "%s: level %d is %s; standby is %s\n", quote(dev.Name), level, quote(r.Image.String()), dev.Standby.Value)
			return err
		},
	}
}
