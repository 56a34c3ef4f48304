package main

import (
	"fmt"
	"runtime"

	"holdfast/internal/build"

	"github.com/urfave/cli/v2"
)

func version() string { return build.Version() }

func versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "print the version of this program", Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, map[string]string{"version": version(), "go": runtime.Version()})
			}
			_, err := fmt.Fprintf(c.App.Writer, "holdfast %s %s\n", version(), runtime.Version())
			return err
		},
	}
}
