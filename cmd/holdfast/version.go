package main

import (
	"fmt"
	"runtime"

	"holdfast/internal/build"

	"github.com/urfave/cli/v2"
)

// versionOverride is set by the linker (-X main.versionOverride=1.2) for builds
// without version control.
var versionOverride string

// version is the module's version, or the commit that it was built from.
func version() string {
	if versionOverride != "" {
		return versionOverride
	}
	return build.Version()
}

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
