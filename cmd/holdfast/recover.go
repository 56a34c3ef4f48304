package main

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/api"
)

func recoverCommand() *cli.Command {
	return &cli.Command{
		Name: "recover", Usage: "try now to serve a device again whose server died", ArgsUsage: "NAME",
		Description: "Its next server does so by itself, again and again; this tells what is in the way.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "go on where nothing tells that the dead server's last write has landed, and take the images as they are"},
			jsonFlag(), runDirFlag(),
		},
		Action: func(c *cli.Context) error {
			args, err := deviceArguments(c, "NAME")
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context, recoverLimit)
			defer cancel()
			dev, err := deviceClient(c, args[0]).Recover(ctx, args[0], c.Bool("force"))
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, dev)
			}
			_, err = fmt.Fprintf(c.App.Writer, "%s is served again\n", dev.Path)
			return err
		},
	}
}

// recoverLimit bounds one attempt, which has bounds of its own.
const recoverLimit = time.Minute

// recoverSpec fills in what create's flags say of the death of the device's server.
func recoverSpec(c *cli.Context, spec *api.Spec) error {
	if spec.RecoverTimeout = api.Duration(c.Duration("recover-timeout")); c.IsSet("recover-timeout") && spec.RecoverTimeout <= 0 {
		return usagef("%s: --recover-timeout %v: want more than 0", commandName(c), time.Duration(spec.RecoverTimeout))
	}
	if spec.RecoverPolicy = c.String("recover-policy"); spec.RecoverPolicy == api.RecoverWait {
		spec.RecoverPolicy = ""
	}
	return nil
}
