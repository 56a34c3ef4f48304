package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"

	"holdfast/ploop"
)

func imageConvertCommand() *cli.Command {
	return &cli.Command{
		Name: "convert", Usage: "copy an image into another format", ArgsUsage: "SRC DST",
		Description: "SRC is a ploop image unless --from raw or raw@SRC says otherwise: that is never guessed. DST\n" +
			"gets the other format than SRC unless --to, or a property of a ploop image, says otherwise.\n" +
			"It must not exist, is sparse, and is there whole or not at all.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "from", Usage: "format of SRC: raw or ploop"},
			&cli.StringFlag{Name: "to", Usage: "format of DST: raw or ploop"},
			clusterSizeFlag(), formatFlag(),
		},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "SRC", "DST")
			if err != nil {
				return err
			}
			src, to, err := directions(c, args[0])
			if err != nil {
				return err
			}
			var o ploop.ConvertOptions
			if o.ClusterSize, err = sizeOf(c, "cluster-size"); err != nil {
				return err
			}
			version, err := versionOf(c)
			if err != nil {
				return err
			}
			if to == "ploop" {
				o.To = ploop.Format(version)
			}
			progress, done := progressBar(c.App.ErrWriter)
			o.Progress = progress
			err = ploop.Convert(c.Context, src, args[1], o)
			done()
			if err != nil && c.Context.Err() != nil && errors.Is(err, c.Context.Err()) {
				return fmt.Errorf("interrupted; %s was not made", quote(args[1]))
			}
			return hintRaw(err)
		},
	}
}

// directions finds out the formats of both sides.
func directions(c *cli.Context, arg string) (src ploop.ImageRef, to string, err error) {
	if src, err = ploop.ParseImageRef(arg); err != nil {
		return src, "", usagef("%s: %v", commandName(c), err)
	}
	for _, f := range []string{"from", "to"} {
		switch v := c.String(f); {
		case v != "raw" && v != "ploop" && c.IsSet(f):
			return src, "", usagef("%s: --%s %q is neither raw nor ploop", commandName(c), f, v)
		case f == "from" && v == "raw":
			src.Raw = true
		case f == "from" && v == "ploop" && src.Raw:
			return src, "", usagef("%s: --from ploop, but SRC is %q", commandName(c), arg)
		}
	}
	shaped := c.IsSet("cluster-size") || c.IsSet("format")
	to = c.String("to")
	switch {
	case to == "raw" && shaped:
		return src, "", usagef("%s: --cluster-size and --format are for ploop images, and DST is to be raw", commandName(c))
	case to == "" && (src.Raw || shaped):
		to = "ploop"
	case to == "":
		to = "raw"
	}
	return src, to, nil
}

// progressBar is a bar for people; scripts and logs get none (a nil function).
func progressBar(w io.Writer) (progress func(done, total int64), finish func()) {
	if !isTerminal(w) {
		return nil, func() {}
	}
	var bar *progressbar.ProgressBar
	progress = func(done, total int64) {
		if bar == nil {
			bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(w), progressbar.OptionShowBytes(true),
				progressbar.OptionUseIECUnits(true), progressbar.OptionThrottle(100*time.Millisecond),
				progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth())
		}
		bar.Set64(done)
	}
	return progress, func() {
		if bar != nil {
			bar.Clear()
		}
	}
}
