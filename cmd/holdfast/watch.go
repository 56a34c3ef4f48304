package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/control"
	"holdfast/device"
)

func attrCommand() *cli.Command {
	return &cli.Command{
		Name: "attr", Usage: "the attribute tree, where it is not mounted",
		Subcommands: []*cli.Command{
			{
				Name: "get", Usage: "print an attribute", ArgsUsage: "PATH", Flags: []cli.Flag{runDirFlag()},
				Action: func(c *cli.Context) error {
					args, err := arguments(c, "PATH")
					if err != nil {
						return err
					}
					info, err := client(c).Attr(c.Context, args[0])
					if err != nil {
						return err
					}
					if info.Dir {
						return usagef("%s: %s is a directory; 'holdfast attr list' shows it", commandName(c), quote(args[0]))
					}
					_, err = fmt.Fprintln(c.App.Writer, info.Value)
					return err
				},
			},
			{
				Name: "set", Usage: "write to an attribute", ArgsUsage: "PATH VALUE", Flags: []cli.Flag{runDirFlag()},
				Action: func(c *cli.Context) error {
					args, err := arguments(c, "PATH", "VALUE")
					if err != nil {
						return err
					}
					return client(c).SetAttr(c.Context, args[0], args[1])
				},
			},
			{
				Name: "list", Usage: "list attributes", ArgsUsage: "[PATH]",
				Flags: []cli.Flag{&cli.BoolFlag{Name: "recursive", Aliases: []string{"r"}, Usage: "with all below"}, runDirFlag()},
				Action: func(c *cli.Context) error {
					path := "/"
					if c.Args().Len() > 0 {
						args, err := arguments(c, "PATH")
						if err != nil {
							return err
						}
						path = args[0]
					}
					return listAttrs(c, strings.Trim(path, "/"), c.Bool("recursive"))
				},
			},
		},
	}
}

// listAttrs prints a directory's entries by their paths; directories end in a slash, links
// say where they lead.
func listAttrs(c *cli.Context, path string, recursive bool) error {
	info, err := client(c).Attr(c.Context, path)
	if err != nil {
		return err
	}
	if !info.Dir {
		_, err := fmt.Fprintln(c.App.Writer, quote(path))
		return err
	}
	for _, e := range info.Entries {
		below := strings.TrimPrefix(path+"/"+e.Name, "/")
		text := quote(below)
		switch {
		case e.Target != "":
			text += " -> " + quote(e.Target)
		case e.Dir:
			text += "/"
		}
		if _, err := fmt.Fprintln(c.App.Writer, text); err != nil {
			return err
		}
		if recursive && e.Dir {
			if err := listAttrs(c, below, true); err != nil {
				return err
			}
		}
	}
	return nil
}

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name: "events", Usage: "print what happened",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Usage: "and what happens, until interrupted"},
			&cli.StringFlag{Name: "device", Usage: "of the device `NAME` only"},
			&cli.BoolFlag{Name: "json", Aliases: []string{"j"}, Usage: "one JSON object a line"},
			runDirFlag(),
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			enc := json.NewEncoder(c.App.Writer)
			enc.SetEscapeHTML(false)
			return client(c).Events(c.Context, control.EventsQuery{Follow: c.Bool("follow"), Device: c.String("device")}, func(e device.Event) error {
				if c.Bool("json") {
					return enc.Encode(e)
				}
				name := "-"
				if e.Device != "" {
					name = quote(e.Device)
				}
				_, err := fmt.Fprintf(c.App.Writer, "%s %s %s %s\n", e.Time.Local().Format(time.DateTime), name, e.Kind, oneLine(e.Message))
				return err
			})
		},
	}
}

func whyCommand() *cli.Command {
	return &cli.Command{
		Name: "why", Usage: "explain a device's state in sentences", ArgsUsage: "NAME",
		Flags: []cli.Flag{runDirFlag()},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "NAME")
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context, queryLimit)
			defer cancel()
			snap, err := client(c).Snapshot(ctx)
			if err != nil {
				return err
			}
			dev, err := client(c).Device(ctx, args[0])
			if err != nil {
				return err
			}
			for _, s := range control.Why(dev, &snap.Key) {
				if _, err := fmt.Fprintln(c.App.Writer, oneLine(s)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
