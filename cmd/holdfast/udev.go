package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/control"
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
			id, err := control.Identify(ctx, number)
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
