package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/api"

	"github.com/urfave/cli/v2"
)

func waitCommand() *cli.Command {
	return &cli.Command{
		Name: "wait", Usage: "wait until a device is in a state, and print it", ArgsUsage: "NAME STATE…",
		Description: "States: " + strings.Join(api.States, ", ") + ";\n" +
			"several, in several words or with commas, for any of them. Exit code 7: time is up.\n" +
			"It goes on over a restart of the manager.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "timeout", Usage: "for `TIME` at most; 0s: check once", DefaultText: "for ever"},
			jsonFlag(), runDirFlag(),
		},
		Action: func(c *cli.Context) error {
			args, err := deviceArguments(c, "NAME", "STATE…")
			if err != nil {
				return err
			}
			states := strings.Split(strings.Join(args[1:], ","), ",")
			for _, s := range states {
				if !slices.Contains(api.States, s) {
					return usagef("%s: %q is not a state: there are %s", commandName(c), s, strings.Join(api.States, ", "))
				}
			}
			if limit := c.Duration("timeout"); limit < 0 {
				return usagef("%s: --timeout %v: want 0 or more", commandName(c), limit)
			}
			dev, err := waitFor(c, args[0], states)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, dev)
			}
			_, err = fmt.Fprintln(c.App.Writer, dev.State)
			return err
		},
	}
}

// timeUp is the end of a wait that was in vain.
type timeUp struct{ msg string }

func (e *timeUp) Error() string { return e.msg }

func waitFor(c *cli.Context, name string, states []string) (*api.Device, error) {
	begin, limit := time.Now(), c.Duration("timeout")
	first := queryLimit
	if c.IsSet("timeout") {
		first = min(first, max(limit, lastQuery))
	}
	dev, err := currentState(c, name, first)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(states, dev.State) {
		if dev.State == api.StateRemoved {
			return nil, fmt.Errorf("there is no device %q", name)
		}
		// By its name from now on: the disk's may be another device's when this one is gone.
		name = dev.Name
		ctx, cancel := c.Context, context.CancelFunc(func() {})
		if c.IsSet("timeout") {
			ctx, cancel = context.WithDeadline(ctx, begin.Add(limit))
		}
		dev, err = client(c).Wait(ctx, name, states)
		cancel()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) && err != nil {
			return nil, inVain(c, name, limit)
		}
	}
	return dev, err
}

// currentState is the device as it is now, or in the state removed.
func currentState(c *cli.Context, name string, limit time.Duration) (*api.Device, error) {
	ctx, cancel := context.WithTimeout(c.Context, limit)
	defer cancel()
	dev, err := deviceClient(c, name).BriefDevice(ctx, name)
	if api.CodeOf(err) == api.CodeNotFound {
		dev, err = new(api.Device), nil
		dev.Name, dev.ID, dev.State = name, -1, api.StateRemoved
	}
	return dev, err
}

// lastQuery bounds the question for what there is instead.
const lastQuery = 2 * time.Second

func inVain(c *cli.Context, name string, limit time.Duration) error {
	what := "not to be asked"
	if dev, err := currentState(c, name, lastQuery); err != nil {
		what += ": " + err.Error()
	} else {
		what = dev.State
		if dev.Problem != "" {
			what += ": " + dev.Problem
		}
	}
	return &timeUp{fmt.Sprintf("after %v device %q is %s", limit, name, what)}
}
