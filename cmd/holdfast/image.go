package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"holdfast/ploop"
)

func imageCommand() *cli.Command {
	return &cli.Command{
		Name: "image", Usage: "make, describe, check and convert image files",
		Description: "These work on files, without a manager. An image that is being served is refused,\n" +
			"except by info.",
		Subcommands: []*cli.Command{imageCreateCommand(), imageInfoCommand(), imageMapCommand(), imageCheckCommand(), imageConvertCommand()},
	}
}

func clusterSizeFlag() cli.Flag {
	return &cli.StringFlag{Name: "cluster-size", Aliases: []string{"c"}, Usage: "`SIZE` of a cluster", DefaultText: "1M, or the backing's"}
}

func anyClusterSizeFlag() cli.Flag {
	return &cli.BoolFlag{Name: "any-cluster-size", Usage: "allow clusters that OpenVZ's tools refuse (not a power of two from 32K to 64M)"}
}

func noHolesFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-holes", Usage: "store zeroes too, for hosts whose ploop tool (up to 1.15) refuses sparse images"}
}

func damagedFlag(usage string) cli.Flag {
	return &cli.BoolFlag{Name: "damaged", Usage: usage}
}

func formatFlag() cli.Flag {
	return &cli.IntFlag{Name: "format", Usage: "`VERSION` of the format, 1 or 2", Value: 2}
}

// sizeOf reads a size flag; 0 if it wasn't given.
func sizeOf(c *cli.Context, flag string) (int64, error) {
	if !c.IsSet(flag) {
		return 0, nil
	}
	n, err := parseSize(c.String(flag))
	if err == nil && (n <= 0 || n%ploop.SectorSize != 0) {
		err = fmt.Errorf("%q must be a positive multiple of %d bytes", c.String(flag), ploop.SectorSize)
	}
	if err != nil {
		return 0, usagef("%s: --%s: %v", commandName(c), flag, err)
	}
	return n, nil
}

func versionOf(c *cli.Context) (int, error) {
	v := c.Int("format")
	if v != 1 && v != 2 {
		return 0, usagef("%s: --format %d: there are 1 and 2", commandName(c), v)
	}
	return v, nil
}

func imageCreateCommand() *cli.Command {
	return &cli.Command{
		Name: "create", Usage: "make an empty image", ArgsUsage: "FILE",
		Description: "Sizes are bytes, or a number with K, M, G, T (powers of 1024). With --backing, the new image\n" +
			"fits over that one (raw@FILE for a raw one) and takes its size if --size is not given.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "size", Aliases: []string{"s"}, Usage: "`SIZE` of the disk"},
			clusterSizeFlag(), anyClusterSizeFlag(), formatFlag(), noHolesFlag(),
			&cli.StringFlag{Name: "backing", Aliases: []string{"b"}, Usage: "`FILE` that the image will lie over"},
		},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "FILE")
			if err != nil {
				return err
			}
			o := ploop.CreateOptions{AnyClusterSize: c.Bool("any-cluster-size"), NoHoles: c.Bool("no-holes")}
			if o.Size, err = sizeOf(c, "size"); err != nil {
				return err
			}
			if o.ClusterSize, err = sizeOf(c, "cluster-size"); err != nil {
				return err
			}
			if o.Version, err = versionOf(c); err != nil {
				return err
			}
			if c.IsSet("backing") {
				ref, err := ploop.ParseImageRef(c.String("backing"))
				if err != nil {
					return usagef("%s: %v", commandName(c), err)
				}
				o.Backing = &ref
			} else if o.Size == 0 {
				return usagef("%s: --size is missing", commandName(c))
			}
			return hint(ploop.Create(args[0], o))
		},
	}
}

func imageInfoCommand() *cli.Command {
	return &cli.Command{
		Name: "info", Usage: "tell what an image is", ArgsUsage: "FILE",
		Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "FILE")
			if err != nil {
				return err
			}
			ref, err := ploop.ParseImageRef(args[0])
			if err != nil {
				return usagef("%s: %v", commandName(c), err)
			}
			info, err := ploop.ReadInfo(ref)
			if err != nil {
				return hint(err)
			}
			warnOfParent(c, []ploop.ImageRef{ref})
			if c.Bool("json") {
				return printJSON(c.App.Writer, info)
			}
			return infoTree(info).print(c.App.Writer)
		},
	}
}

// hint adds what to do to the mistakes that everybody makes once.
func hint(err error) error {
	switch {
	case errors.Is(err, ploop.ErrNotPloop):
		return fmt.Errorf("%w (a raw image is named as raw@FILE)", err)
	case errors.Is(err, ploop.ErrUncommon):
		return fmt.Errorf("%w (--any-cluster-size)", err)
	}
	return err
}

// hintDamaged is hint for commands that have the flag.
func hintDamaged(c *cli.Context, err error) error {
	if errors.Is(err, ploop.ErrCorrupt) && !c.Bool("damaged") {
		return fmt.Errorf("%w ('holdfast image check' tells more; --damaged takes what the image still has)", err)
	}
	return hint(err)
}

// warn says something on standard error that doesn't stop the command.
func warn(c *cli.Context, format string, args ...any) {
	fmt.Fprintf(c.App.ErrWriter, "holdfast: warning: %s\n", oneLine(fmt.Sprintf(format, args...)))
}

// warnOfParent says if a stack isn't all of one.
func warnOfParent(c *cli.Context, refs []ploop.ImageRef) {
	if gap := ploop.FindParentGap(refs); gap != nil {
		warn(c, "%v", gap)
	}
}

func infoTree(i *ploop.Info) *node {
	root := &node{text: quote(i.File)}
	root.add("format %s", i.Format)
	root.add("size %s (%d bytes)", formatSize(i.Size), i.Size)
	root.add("file %s, of which %s are stored", formatSize(i.FileSize), formatSize(i.DiskUsage))
	if i.Format != ploop.FormatRaw {
		root.add("%d of %d clusters of %s, data from byte %d", i.Allocated, i.Clusters, formatSize(i.ClusterSize), i.DataOffset)
	}
	if i.BadEntries > 0 {
		root.add("%d bad index entries: see 'holdfast image check'", i.BadEntries)
	}
	switch {
	case i.Locked && i.InUse:
		root.add("marked in use: open in some program now")
	case i.Locked:
		root.add("open in some program now")
	case i.InUse:
		root.add("marked in use: it was not closed cleanly, or a program has it open whose lock is not seen here")
	}
	for _, p := range i.Problems {
		root.add("%s", oneLine(p))
	}
	if x := i.Extension; x != nil {
		ext := root.add("extension at byte %d", x.Offset)
		switch {
		case x.Reason == ploop.IgnoredOpen && i.Locked:
			ext.add("not valid while the image is open")
		case x.Reason == ploop.IgnoredOpen:
			ext.add("not valid: the image is open, or was not closed cleanly")
		case x.Ignored:
			ext.add("not valid: last closed by software that does not know it")
		}
		if x.Error != "" {
			ext.add("not readable: %s", oneLine(x.Error))
		}
		for _, b := range x.Bitmaps {
			ext.add("dirty bitmap %s, granules of %s, %s dirty", b.ID, formatSize(b.Granularity), formatSize(b.Dirty))
		}
		for _, s := range x.Sections {
			ext.add("unknown section %s, %d bytes", s.Magic, s.Size)
		}
	}
	return root
}

// stack reads the FILE… of a command, base first.
func stack(c *cli.Context) ([]ploop.ImageRef, error) {
	args, err := arguments(c, "FILE…")
	if err != nil {
		return nil, err
	}
	refs := make([]ploop.ImageRef, len(args))
	for i, a := range args {
		if refs[i], err = ploop.ParseImageRef(a); err != nil {
			return nil, usagef("%s: %v", commandName(c), err)
		}
	}
	return refs, nil
}
