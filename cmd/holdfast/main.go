// Command holdfast serves ploop images as block devices, and looks after the
// images. docs/cli.md is the contract of its command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"holdfast/api"
)

// Exit codes. docs/cli.md promises them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitBusy        = 4 // in use: the device, or the manager's directories
	exitUnreachable = 5 // no manager answers
	exitDriver      = 6 // the kernel cannot serve devices now
	exitTimeUp      = 7 // what was waited for has not come
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program, for tests too.
func run(args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	ordered, err := arrange(app, args)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		if len(ordered) > 0 && ordered[0] == "daemon" {
			stop() // it has its own idea of signals
			ctx = context.Background()
		}
		err = app.RunContext(ctx, append([]string{"holdfast"}, ordered...))
		stop()
	}
	if err == nil {
		return exitOK
	}
	var quiet exitStatus
	if errors.As(err, &quiet) {
		return int(quiet)
	}
	fmt.Fprintf(stderr, "holdfast: %s\n", oneLine(err.Error()))
	code := exitCode(err)
	// "image check" has promised another meaning for 2.
	if code == exitUsage && len(args) > 1 && isImageCheck(app, args) {
		code = exitFailure
	}
	return code
}

// exitStatus ends the program with a code and no message: everything was said
// on standard output.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func exitCode(err error) int {
	var usage *usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	var late *timeUp
	if errors.As(err, &late) {
		return exitTimeUp
	}
	switch api.CodeOf(err) {
	case api.CodeInvalid:
		return exitUsage
	case api.CodeBusy:
		return exitBusy
	case api.CodeUnreachable:
		return exitUnreachable
	case api.CodeDriver:
		return exitDriver
	}
	return exitFailure
}

// isImageCheck finds out what was meant by a command line that made no sense.
func isImageCheck(app *cli.App, args []string) bool {
	l := line{commands: app.Commands}
	for _, word := range args {
		if word == "" || word[0] == '-' {
			continue
		}
		if l.leaf() || l.descend(word) != nil {
			break
		}
	}
	return l.name() == "image check"
}

const runDirName = "run-dir"

// Flags are made anew for each command: cli keeps parsed values in them.

func runDirFlag() *cli.StringFlag {
	return &cli.StringFlag{Name: runDirName, Usage: "`DIR` of the manager's control socket", Value: api.DefaultRunDir, EnvVars: []string{"HOLDFAST_RUN_DIR"}}
}

// runDir is the run directory of a command; an empty variable is none.
func runDir(c *cli.Context) string {
	if dir := c.String(runDirName); dir != "" {
		return dir
	}
	return api.DefaultRunDir
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Aliases: []string{"j"}, Usage: "print JSON, as docs/cli.md describes it"}
}

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:                      "holdfast",
		Usage:                     "serve ploop images as block devices",
		UsageText:                 "holdfast COMMAND [flags and arguments in any order]",
		Version:                   version(),
		HideVersion:               true,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true, // a file name may have a comma
		Writer:                    stdout,
		ErrWriter:                 stderr,
		ExitErrHandler:            func(*cli.Context, error) {},
		Commands: []*cli.Command{
			daemonCommand(), createCommand(), listCommand(), showCommand(), removeCommand(), replaceCommand(), recoverCommand(), upgradeCommand(), stopCommand(),
			standbyCommand(), standbyCheckCommand(), attachCommand(), detachCommand(), waitCommand(), whyCommand(), eventsCommand(), attrCommand(),
			imageCommand(), completionCommand(), completeCommand(), udevCommand(), versionCommand(), helpCommand(),
		},
	}
	for _, c := range app.Commands {
		prepare(c)
	}
	return app
}

// prepare makes cli report a wrong value of a flag as our kind of error, and
// keeps it from taking a device called "help" for its help command.
func prepare(c *cli.Command) {
	c.HideHelpCommand = true
	c.OnUsageError = func(_ *cli.Context, err error, _ bool) error {
		msg := strings.NewReplacer(" for flag -", " for flag --", " for -", " for flag --").Replace(err.Error())
		return usagef("%s: %s", strings.TrimPrefix(c.HelpName, "holdfast "), msg)
	}
	for _, sub := range c.Subcommands {
		prepare(sub)
	}
}

// helpCommand is there to be listed; arrange turns it into --help.
func helpCommand() *cli.Command {
	return &cli.Command{Name: "help", Usage: "show what a command does", ArgsUsage: "[COMMAND]",
		Action: func(c *cli.Context) error { return cli.ShowAppHelp(c) }}
}
