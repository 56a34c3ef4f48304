package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"holdfast/api"
)

func listCommand() *cli.Command {
	return &cli.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "list the devices",
		Description: "--output takes names of columns with commas between, all, or +NAMES for these behind the usual\n" +
			"ones; help lists them. --json has everything, whatever is said of columns.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`COLUMNS` of the table, or help", DefaultText: strings.Join(columnNames()[:defaultColumns], ",")},
			&cli.BoolFlag{Name: "noheadings", Aliases: []string{"n"}, Usage: "print no line of titles"},
			&cli.BoolFlag{Name: "bytes", Aliases: []string{"b"}, Usage: "print sizes in bytes"},
			jsonFlag(), runDirFlag(),
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			output := c.String("output")
			if output == "help" {
				return columnHelp(c.App.Writer)
			}
			cols, err := chooseColumns(output)
			if err != nil {
				return err
			}
			ask := client(c).Brief
			if c.Bool("json") || slices.ContainsFunc(cols, func(c listColumn) bool { return c.name == usersColumn }) {
				ask = client(c).Snapshot
			}
			ctx, cancel := context.WithTimeout(c.Context, queryLimit)
			defer cancel()
			snap, err := ask(ctx)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, snap)
			}
			if err := printList(c, cols, snap.Devices); err != nil {
				return err
			}
			warnOf(c, snap)
			return nil
		},
	}
}

// warnOf tells of what is wrong.
func warnOf(c *cli.Context, snap *api.Snapshot) {
	warn := func(format string, args ...any) { warn(c, format, args...) }
	if !snap.Driver.Available {
		warn("no device can be created: %s", snap.Driver.Missing)
	}
	for _, d := range snap.Devices {
		if d.Problem != "" {
			warn("device %s: %s; %s", quote(d.Name), d.Problem, d.Advice)
		}
	}
	for _, p := range snap.Problems {
		warn("%s: %s; %s", quote(p.File), p.Reason, p.Advice)
	}
	if snap.Daemon.Stopping {
		warn("the manager is stopping, and waits for the devices to be released")
	}
}

func printList(c *cli.Context, chosen []listColumn, devices []api.Device) error {
	var cols []column
	for _, col := range chosen {
		cols = append(cols, column{strings.ToUpper(col.name), col.right})
	}
	var rows [][]string
	for i := range devices {
		var row []string
		for _, col := range chosen {
			row = append(row, col.cell(&devices[i], c.Bool("bytes")))
		}
		rows = append(rows, row)
	}
	return table(c.App.Writer, cols, rows, !c.Bool("noheadings"))
}

func columnHelp(w io.Writer) error {
	var rows [][]string
	for _, c := range listColumns {
		rows = append(rows, []string{c.name, c.help})
	}
	return table(w, []column{{title: "COLUMN"}, {title: "MEANING"}}, rows, true)
}

// stateOf is the state, with how full of held requests a device is: at all of its tags it
// takes no more. One that hangs says for how long.
func stateOf(d *api.Device) string {
	if d.State == api.StateHung && d.Oldest != nil {
		return d.State + ":" + seconds(d.Oldest.Seconds)
	}
	if d.Standby.Held == 0 && d.State != api.StateStandby {
		return d.State
	}
	return fmt.Sprintf("%s:%d/%d", d.State, d.Standby.Held, d.Standby.Tags)
}

// shortUsers names mount points as lsblk does, and the kind of other users.
func shortUsers(users []api.User) string {
	var words []string
	for _, u := range users {
		switch u.Kind {
		case "mount", "holder", "loop", "target":
			words = append(words, quote(u.Name))
		case "swap":
			words = append(words, "[SWAP]")
		default:
			words = append(words, fmt.Sprintf("%s:%d", quote(u.Name), u.PID))
		}
	}
	return strings.Join(words, ",")
}
