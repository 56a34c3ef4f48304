package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"holdfast/api"
	"holdfast/state"
)

func attrCommand() *cli.Command {
	return &cli.Command{
		Name: "attr", Usage: "the attribute tree, where it is not mounted",
		Subcommands: []*cli.Command{
			{
				Name: "get", Usage: "print an attribute", ArgsUsage: "PATH", Flags: []cli.Flag{jsonFlag(), runDirFlag()},
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
					if c.Bool("json") {
						return printJSON(c.App.Writer, map[string]string{"path": strings.Trim(args[0], "/"), "value": info.Value})
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
				Flags: []cli.Flag{&cli.BoolFlag{Name: "recursive", Aliases: []string{"r"}, Usage: "with all below"}, jsonFlag(), runDirFlag()},
				Action: func(c *cli.Context) error {
					args, err := arguments(c, "[PATH]")
					if err != nil {
						return err
					}
					path := strings.Trim(strings.Join(args, ""), "/")
					list, err := listAttrs(c, path, c.Bool("recursive"))
					if err != nil {
						return err
					}
					if c.Bool("json") {
						return printJSON(c.App.Writer, list)
					}
					return printAttrs(c, list)
				},
			},
		},
	}
}

// listedAttr is an attribute or a directory of the tree, by its whole path.
type listedAttr struct {
	Path   string `json:"path"`
	Dir    bool   `json:"dir"`
	Target string `json:"target,omitempty"` // of a link
}

// listAttrs is what is in a directory, or the attribute itself.
func listAttrs(c *cli.Context, path string, recursive bool) ([]listedAttr, error) {
	info, err := client(c).Attr(c.Context, path)
	if err != nil {
		return nil, err
	}
	if !info.Dir {
		return []listedAttr{{Path: path}}, nil
	}
	list := []listedAttr{}
	for _, e := range info.Entries {
		at := listedAttr{strings.TrimPrefix(path+"/"+e.Name, "/"), e.Dir, e.Target}
		list = append(list, at)
		if recursive && e.Dir && e.Target == "" {
			below, err := listAttrs(c, at.Path, true)
			if err != nil {
				return nil, err
			}
			list = append(list, below...)
		}
	}
	return list, nil
}

// printAttrs prints them by their paths; directories end in a slash, links say where they lead.
func printAttrs(c *cli.Context, list []listedAttr) error {
	for _, at := range list {
		text := quote(at.Path)
		switch {
		case at.Target != "":
			text += " -> " + quote(at.Target)
		case at.Dir:
			text += "/"
		}
		if _, err := fmt.Fprintln(c.App.Writer, text); err != nil {
			return err
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
			q := api.EventsQuery{Follow: c.Bool("follow")}
			if c.IsSet("device") {
				var err error
				if q.Device, err = deviceName(c.String("device")); err != nil {
					return err
				}
			}
			enc := json.NewEncoder(c.App.Writer)
			enc.SetEscapeHTML(false)
			return client(c).Events(c.Context, q, func(e api.Event) error {
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
			key, err := checkOf(c, ctx)
			if err != nil {
				return err
			}
			text := api.Why(dev, key)
			if c.Bool("json") {
				return printJSON(c.App.Writer, map[string]any{"name": dev.Name, "state": dev.State, "sentences": text})
			}
			for _, s := range text {
				if _, err := fmt.Fprintln(c.App.Writer, oneLine(s)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// checkOf is the standby check, of which the run directory tells a part while there is no manager.
func checkOf(c *cli.Context, ctx context.Context) (*api.KeyInfo, error) {
	snap, err := client(c).Brief(ctx)
	if err == nil {
		return &snap.Key, nil
	}
	if api.CodeOf(err) != api.CodeUnreachable {
		return nil, err
	}
	key, kerr := state.OpenKey(runDir(c), zerolog.Nop())
	if kerr != nil {
		return nil, err
	}
	return &api.KeyInfo{On: key.Load() != 0}, nil
}
