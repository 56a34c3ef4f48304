package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"holdfast/ploop"
)

func imageMapCommand() *cli.Command {
	return &cli.Command{
		Name: "map", Usage: "tell which file holds which part of the disk", ArgsUsage: "FILE…",
		Description: "Give the images of a stack base first.",
		Flags:       []cli.Flag{damagedFlag("tell of a damaged image what it still has"), jsonFlag()},
		Action: func(c *cli.Context) error {
			refs, err := stack(c)
			if err != nil {
				return err
			}
			warnOfParent(c, refs)
			out := bufio.NewWriter(c.App.Writer)
			walk := func(visit func(ploop.Extent) error) error { return ploop.Map(refs, visit) }
			if c.Bool("damaged") {
				walk = func(visit func(ploop.Extent) error) error { return ploop.MapDamaged(refs, visit) }
			}
			write := mapLines
			if c.Bool("json") {
				write = mapJSON
			}
			if err := write(out, walk); err != nil {
				out.Flush()
				return hintDamaged(c, err)
			}
			return out.Flush()
		},
	}
}

// walker visits the extents of a disk.
type walker func(visit func(ploop.Extent) error) error

// mapLines and mapJSON print as they go: a large disk can have millions of
// extents.
func mapLines(w io.Writer, walk walker) error {
	fmt.Fprintf(w, "%16s %16s %5s %16s %s\n", "START", "LENGTH", "LEVEL", "OFFSET", "FILE")
	return walk(func(e ploop.Extent) error {
		var err error
		if e.Damaged {
			_, err = fmt.Fprintf(w, "%16d %16d %5d %16s %s\n", e.Start, e.Length, e.Level, "lost", quote(e.File))
		} else if !e.Data {
			_, err = fmt.Fprintf(w, "%16d %16d %5s %16s %s\n", e.Start, e.Length, "-", "-", "-")
		} else {
			doubt := ""
			if e.Doubtful {
				doubt = "  (another range has the same place)"
			}
			_, err = fmt.Fprintf(w, "%16d %16d %5d %16d %s%s\n", e.Start, e.Length, e.Level, e.Offset, quote(e.File), doubt)
		}
		return err
	})
}

func mapJSON(w io.Writer, walk walker) error {
	sep := "["
	err := walk(func(e ploop.Extent) error {
		data, err := json.Marshal(e)
		if err == nil {
			_, err = fmt.Fprintf(w, "%s\n  %s", sep, data)
		}
		sep = ","
		return err
	})
	if err != nil {
		return err
	}
	if sep == "[" {
		_, err = io.WriteString(w, "[]\n")
	} else {
		_, err = io.WriteString(w, "\n]\n")
	}
	return err
}
