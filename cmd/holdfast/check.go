package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"holdfast/ploop"
)

func imageCheckCommand() *cli.Command {
	return &cli.Command{
		Name: "check", Usage: "look for faults in an image or a stack", ArgsUsage: "FILE…",
		Description: "Give the images of a stack base first. Exit codes: 0 clean, 1 could not check, 2 corrupt,\n" +
			"3 leaks only. What --repair mended does not count.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "repair", Usage: "mend what can be mended without a guess"},
			jsonFlag(),
		},
		Action: func(c *cli.Context) error {
			refs, err := stack(c)
			if err != nil {
				return err
			}
			report, err := ploop.Check(refs, ploop.CheckOptions{Repair: c.Bool("repair")})
			if err != nil {
				return hintRaw(err)
			}
			if c.Bool("json") {
				err = printJSON(c.App.Writer, report)
			} else {
				err = printCheck(c, report)
			}
			if err != nil {
				return err
			}
			if code := report.ExitCode(); code != exitOK {
				return exitStatus(code)
			}
			return nil
		},
	}
}

// printCheck prints the findings, then a line for each image.
func printCheck(c *cli.Context, r *ploop.CheckReport) error {
	finding := func(f ploop.Finding) {
		mended := ""
		if f.Repaired {
			mended = "  (repaired)"
		}
		fmt.Fprintf(c.App.Writer, "%s: %s%s\n", f.Kind, oneLine(f.Message), mended)
	}
	for _, im := range r.Images {
		for _, f := range im.Findings {
			finding(f)
		}
	}
	for _, f := range r.Stack {
		finding(f)
	}
	for _, im := range r.Images {
		verdict := "clean"
		if im.Corruptions > 0 || im.Leaks > 0 {
			verdict = fmt.Sprintf("%s, %s (%s)", plural(im.Corruptions, "corruption", "corruptions"), plural(im.Leaks, "leaked cluster", "leaked clusters"), formatSize(im.LeakBytes))
			if im.Repaired > 0 {
				verdict += fmt.Sprintf(", %d repaired", im.Repaired)
			}
		}
		if strings.HasPrefix(im.Format, "ploop") {
			verdict += fmt.Sprintf("; %d of %d clusters allocated, %d free in between", im.Allocated, im.Clusters, im.Free)
		}
		if _, err := fmt.Fprintf(c.App.Writer, "%s: %s\n", quote(im.File), verdict); err != nil {
			return err
		}
	}
	return nil
}
