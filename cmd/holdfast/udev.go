package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"holdfast/api"
	"holdfast/state"
	"holdfast/ublk"

	"github.com/urfave/cli/v2"
)

// udevCommand is what systemd/59-holdfast.rules runs for each block device of the driver: it
// prints properties of those that are ours. While a udev worker waits, so do others.
func udevCommand() *cli.Command {
	return &cli.Command{
		Name: "__udev", Hidden: true, ArgsUsage: "NUMBER",
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "NUMBER")
			if err != nil {
				return err
			}
			number, err := strconv.Atoi(args[0])
			if err != nil || number < 0 {
				return usagef("%q is not the number of a device", args[0])
			}
			ctx, cancel := context.WithTimeout(c.Context, 5*time.Second)
			defer cancel()
			id, err := identify(ctx, number)
			if id == nil || err != nil {
				return err
			}
			ready := 0
			if id.Served {
				ready = 1
			}
			text := fmt.Sprintf("HOLDFAST_NAME=%s\nHOLDFAST_LINK=%s\nHOLDFAST_READY=%d\n", id.Name, id.Link(), ready)
			if id.IOTimeout != "" {
				text += fmt.Sprintf("HOLDFAST_IO_TIMEOUT=%s\n", id.IOTimeout)
			}
			_, err = fmt.Fprint(c.App.Writer, text)
			return err
		},
	}
}

// identify finds out what /dev/ublkb<number> is, nil if it is none of ours. It asks no process of
// ours, so it answers while there is none: the driver has the mark of the state directory on the
// device, and the records have the name. Only devices of the default directories are found, or
// of two of the form /run/holdfast-INSTANCE.
func identify(ctx context.Context, number int) (*state.Identity, error) {
	ctl, err := ublk.Open("")
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	info, err := ctl.GetInfo(ctx, number)
	if err != nil {
		return nil, err
	}
	id, err := state.IdentityOf(api.DefaultRunDir, api.DefaultStateDir, state.Disk{ID: number, Tag: state.Tag(info.Tag)}, state.BootID())
	if id != nil {
		id.Served = id.Served && info.State == ublk.Live && !info.Unreleased()
		_, id.IOTimeout, _ = ctl.TimeoutAttr(ctx, number)
	}
	return id, err
}
