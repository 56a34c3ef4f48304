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
		Flags:       []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			refs, err := stack(c)
			if err != nil {
				return err
			}
			out := bufio.NewWriter(c.App.Writer)
			write := mapLines
			if c.Bool("json") {
				write = mapJSON
			}
			if err := write(out, refs); err != nil {
				out.Flush()
				return hintRaw(err)
			}
			return out.Flush()
		},
	}
}

// mapLines and mapJSON print as they go: a large disk can have millions of
// extents.
func mapLines(w io.Writer, refs []ploop.ImageRef) error {
	fmt.Fprintf(w, "%16s %16s %5s %16s %s\n", "START", "LENGTH", "LEVEL", "OFFSET", "FILE")
	return ploop.Map(refs, func(e ploop.Extent) error {
		var err error
		if !e.Data {
			_, err = fmt.Fprintf(w, "%16d %16d %5s %16s %s\n", e.Start, e.Length, "-", "-", "-")
		} else {
			_, err = fmt.Fprintf(w, "%16d %16d %5d %16d %s\n", e.Start, e.Length, e.Level, e.Offset, quote(e.File))
		}
		return err
	})
}

func mapJSON(w io.Writer, refs []ploop.ImageRef) error {
	sep := "["
	err := ploop.Map(refs, func(e ploop.Extent) error {
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
