package main

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/control"
	"holdfast/device"
)

func recoverCommand() *cli.Command {
	return &cli.Command{
		Name: "recover", Usage: "try now to serve a device again whose daemon died", ArgsUsage: "NAME",
		Description: "The daemon does so by itself, again and again; this tells what is in the way.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "go on where the image's file system has no locks to tell that the dead daemon's last write has landed"},
			runDirFlag(),
		},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "NAME")
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context, recoverLimit)
			defer cancel()
			dev, err := control.NewClient(runDir(c)).Recover(ctx, args[0], c.Bool("force"))
			if err == nil {
				_, err = fmt.Fprintf(c.App.Writer, "%s is served again\n", dev.Path)
			}
			return err
		},
	}
}

// recoverLimit bounds one attempt, which has bounds of its own.
const recoverLimit = time.Minute

// recoverSpec fills in what create's flags say of the death of the daemon.
func recoverSpec(c *cli.Context, spec *device.Spec) error {
	if spec.RecoverTimeout = device.Duration(c.Duration("recover-timeout")); c.IsSet("recover-timeout") && spec.RecoverTimeout <= 0 {
		return usagef("%s: --recover-timeout %v: want more than 0", commandName(c), time.Duration(spec.RecoverTimeout))
	}
	if spec.RecoverPolicy = c.String("recover-policy"); spec.RecoverPolicy == device.RecoverWait {
		spec.RecoverPolicy = ""
	}
	return nil
}
