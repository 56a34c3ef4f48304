package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"holdfast/api"
)

func upgradeCommand() *cli.Command {
	return &cli.Command{
		Name: "upgrade", Usage: "have new servers take over devices while they are in use", ArgsUsage: "[NAME …]",
		Description: "One after the other, or --parallel at once, servers leave their devices to a server of the new\n" +
			"program. I/O of a device pauses meanwhile, and the longest pause is printed. A device that can't\n" +
			"be left stays with its server. If a new server doesn't serve, the old program does again, and\n" +
			"no further device is touched.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "binary", Usage: "`FILE` of the new program holdfast-serve", DefaultText: "the one that is installed"},
			&cli.IntFlag{Name: "parallel", Usage: "`N` devices at once", Value: 1},
			jsonFlag(), runDirFlag(),
		},
		Action: func(c *cli.Context) error {
			r := api.UpgradeRequest{Devices: c.Args().Slice()}
			switch n := c.Int("parallel"); {
			case n < 1:
				return usagef("%s: --parallel %d: want at least 1", commandName(c), n)
			case n > 1: // a daemon of before servers of their own has no such field
				r.Parallel = n
			}
			if c.IsSet("binary") {
				var err error
				if r.Binary, err = filepath.Abs(c.String("binary")); err != nil {
					return err
				}
			}
			res, err := client(c).Upgrade(c.Context, r)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				err = printJSON(c.App.Writer, res)
			} else {
				err = printUpgrade(c, res)
			}
			if err != nil {
				return err
			}
			return upgradeFailure(res)
		},
	}
}

func printUpgrade(c *cli.Context, res *api.UpgradeResult) error {
	for _, s := range res.Servers {
		if s.Result != api.UpgradeDone {
			if _, err := fmt.Fprintf(c.App.Writer, "%s: %s: %s\n", s.Device, s.Result, oneLine(s.Error)); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(c.App.Writer, "new servers serve %s; I/O paused for %.1f ms at most\n", count(res.Devices, "device"), res.PauseMS)
	return err
}

// upgradeFailure is the error of an upgrade that was stopped. That a device was kept is none.
func upgradeFailure(res *api.UpgradeResult) error {
	for _, s := range res.Servers {
		switch s.Result {
		case api.UpgradeUndone, api.UpgradeFailed:
			return fmt.Errorf("the upgrade was stopped at device %q: %s", s.Device, oneLine(s.Error))
		}
	}
	if res.Waiting > 0 {
		return fmt.Errorf("%s to be recovered: 'holdfast list' says why", plural(res.Waiting, "device waits", "devices wait"))
	}
	return nil
}

func stopCommand() *cli.Command {
	return &cli.Command{
		Name: "stop", Usage: "end all servers in order, and leave the manager",
		Description: "Devices that nobody uses are removed cleanly, but persistent ones come back with the next boot. Those\n" +
			"in use go on until their users have closed them.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "timeout", Usage: "wait for `TIME` for users of devices", DefaultText: "for ever"},
			jsonFlag(), runDirFlag(),
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			limit := c.Duration("timeout")
			if limit < 0 {
				return usagef("%s: --timeout %v: want 0 (for ever) or more", commandName(c), limit)
			}
			res, err := client(c).StopServers(c.Context, api.StopRequest{Timeout: api.Duration(limit)})
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, res)
			}
			if len(res.Left) > 0 {
				return api.Errorf(api.CodeBusy, "still in use after %v: %s", limit, namesOf(res.Left))
			}
			return nil
		},
	}
}

func namesOf(names []string) string { return api.OrNobody(names) }
