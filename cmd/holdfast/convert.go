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
		Name: "convert", Usage: "copy an image, or the disk of a stack, into another format", ArgsUsage: "SRC… DST",
		Description: "SRC… is a stack, base first. The first is a ploop image unless --from raw or raw@SRC says\n" +
			"otherwise: that is never guessed. DST gets the other format than the last SRC unless --to, or a\n" +
			"property of a ploop image, says otherwise. It must not exist, is sparse, and is there whole or\n" +
			"not at all.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "from", Usage: "format of the first SRC: raw or ploop"},
			&cli.StringFlag{Name: "to", Usage: "format of DST: raw or ploop"},
			clusterSizeFlag(), anyClusterSizeFlag(), formatFlag(), noHolesFlag(),
			damagedFlag("copy what a damaged image still has: the rest becomes zeroes, is listed, and the exit code is 1"),
			&cli.BoolFlag{Name: "alone", Usage: "copy an image without its parent, although a DiskDescriptor.xml beside it says that it has one"},
		},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "SRC", "DST…")
			if err != nil {
				return err
			}
			src, dst := args[:len(args)-1], args[len(args)-1]
			refs, to, err := directions(c, src)
			if err != nil {
				return err
			}
			if gap := ploop.FindParentGap(refs); gap != nil && !c.Bool("alone") {
				return fmt.Errorf("%w; give all of it, or --alone", gap)
			}
			o := ploop.ConvertOptions{AnyClusterSize: c.Bool("any-cluster-size"), NoHoles: c.Bool("no-holes")}
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
			var damage ploop.Damage
			if c.Bool("damaged") {
				o.Damaged = func(d *ploop.Damage) { damage = *d }
			}
			progress, done := progressBar(c.App.ErrWriter)
			o.Progress = progress
			err = ploop.ConvertStack(c.Context, refs, dst, o)
			done()
			if err != nil && c.Context.Err() != nil && errors.Is(err, c.Context.Err()) {
				return fmt.Errorf("interrupted; %s was not made", quote(dst))
			}
			if err != nil {
				return hintDamaged(c, err)
			}
			return reportDamage(c, dst, &damage)
		},
	}
}

// reportDamage says what of a copy isn't what the disk was.
func reportDamage(c *cli.Context, dst string, d *ploop.Damage) error {
	for _, g := range d.Guesses {
		warn(c, "%s", g)
	}
	for _, r := range d.Unreadable {
		warn(c, "bytes %v of the disk are lost, and zeroes in the copy", r)
	}
	for _, r := range d.Doubtful {
		warn(c, "bytes %v of the disk share their place in the image with others: the copy has the same for all, and at most one is right", r)
	}
	if d.UnreadableBytes+d.DoubtfulBytes == 0 {
		return nil
	}
	return fmt.Errorf("%s was made, but %d bytes of the disk are lost and %d may be wrong", quote(dst), d.UnreadableBytes, d.DoubtfulBytes)
}

// directions finds out the formats of both sides.
func directions(c *cli.Context, args []string) (refs []ploop.ImageRef, to string, err error) {
	for _, a := range args {
		ref, err := ploop.ParseImageRef(a)
		if err != nil {
			return nil, "", usagef("%s: %v", commandName(c), err)
		}
		refs = append(refs, ref)
	}
	base := &refs[0]
	for _, f := range []string{"from", "to"} {
		switch v := c.String(f); {
		case v != "raw" && v != "ploop" && c.IsSet(f):
			return nil, "", usagef("%s: --%s %q is neither raw nor ploop", commandName(c), f, v)
		case f == "from" && v == "raw":
			base.Raw = true
		case f == "from" && v == "ploop" && base.Raw:
			return nil, "", usagef("%s: --from ploop, but SRC is %q", commandName(c), args[0])
		}
	}
	shaped := ""
	for _, f := range []string{"cluster-size", "any-cluster-size", "format"} {
		if c.IsSet(f) {
			shaped = f
		}
	}
	to = c.String("to")
	switch {
	case to == "raw" && shaped != "":
		return nil, "", usagef("%s: --%s is for ploop images, and DST is to be raw", commandName(c), shaped)
	case to == "" && (refs[len(refs)-1].Raw || shaped != ""):
		to = "ploop"
	case to == "":
		to = "raw"
	}
	return refs, to, nil
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
