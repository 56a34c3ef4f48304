package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"holdfast/ploop"
)

func imageCheckCommand() *cli.Command {
	return &cli.Command{
		Name: "check", Usage: "look for faults in an image or a stack", ArgsUsage: "FILE…",
		Description: "Give the images of a stack base first. Exit codes: 0 clean, 1 could not check, 2 corrupt,\n" +
			"3 leaks only. What --repair mended does not count, but data that is lost does.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "repair", Usage: "mend what can be mended without a guess, and without giving up what is in the file"},
			&cli.StringSliceFlag{Name: "allow", Usage: "let --repair also do `WHAT` a finding says that it needs: older-data, beyond-disk or data-offset (repeatable)"},
			jsonFlag(),
		},
		Action: func(c *cli.Context) error {
			refs, err := stack(c)
			if err != nil {
				return err
			}
			o := ploop.CheckOptions{Repair: c.Bool("repair")}
			for _, what := range strings.Split(strings.Join(c.StringSlice("allow"), ","), ",") {
				if what == "" {
					continue
				}
				if err := o.Allow.Set(what); err != nil || !o.Repair {
					return usagef("%s: --allow: %v", commandName(c), cmp.Or(err, errors.New("it is for --repair")))
				}
			}
			report, err := ploop.Check(refs, o)
			if err != nil {
				return hint(err)
			}
			warnOfParent(c, refs)
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
		switch {
		case f.Repaired:
			mended = "  (repaired)"
		case f.Needs != "":
			mended = fmt.Sprintf("  (--repair --allow %s mends it)", f.Needs)
		}
		fmt.Fprintf(c.App.Writer, "%s: %s%s\n", f.Kind, oneLine(f.Message), mended)
	}
	for _, im := range r.Images {
		for _, f := range im.Findings {
			finding(f)
		}
		for _, r := range im.Lost {
			fmt.Fprintf(c.App.Writer, "lost: %s: bytes %v of the disk\n", quote(im.File), r)
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
		if im.LostBytes > 0 {
			verdict += fmt.Sprintf("; %d bytes of the disk are lost, the file does not have them", im.LostBytes)
			if im.Repaired > 0 && im.Opens() {
				verdict += ", and they read as zeroes now (where a whole cluster is lost, as the image below has it, if one is below)"
			}
		}
		if strings.HasPrefix(im.Format, "ploop") {
			verdict += fmt.Sprintf("; %d of %d clusters allocated, %d free in between", im.Allocated, im.Clusters, im.Free)
		}
		if _, err := fmt.Fprintf(c.App.Writer, "%s: %s\n", quote(im.File), verdict); err != nil {
			return err
		}
		if !im.Opens() {
			fmt.Fprintf(c.App.Writer, "%s: it is not opened as it is; with --damaged, 'holdfast image convert' copies and 'holdfast create --read-only' serves what it still has\n", quote(im.File))
		}
	}
	return nil
}
