package main

import (
	"fmt"
	"time"

	"holdfast/control"
)

// deviceTree is what show prints: what is wrong first, then what it is made of.
func deviceTree(d *control.Device) *node {
	head := quote(d.Name)
	if d.Path != "" {
		head += fmt.Sprintf("  %s  %s", quote(d.Path), formatSize(d.Size))
	}
	if d.ReadOnly {
		head += "  read-only"
	}
	root := &node{text: head + "  " + d.State}
	if d.Problem != "" {
		n := root.add("problem: %s", oneLine(d.Problem))
		if d.Advice != "" {
			n.add("%s", oneLine(d.Advice))
		}
	}
	served := d.Path != ""
	images := root.add("images, top first")
	for i := len(d.Images) - 1; i >= 0; i-- {
		im := d.Images[i]
		text := fmt.Sprintf("%d  %s", im.Level, quote(im.Path))
		if im.Format != "" {
			text += "  " + im.Format
		}
		if served {
			if im.Direct {
				text += "  direct"
			} else {
				text += "  buffered"
			}
			if !im.Locked {
				text += "  not locked (its file system has no locks)"
			}
			if i == len(d.Images)-1 && d.Clusters > 0 && im.Format != "raw" {
				text += fmt.Sprintf("  %d of %d clusters of %s", d.Allocated, d.Clusters, formatSize(d.ClusterSize))
			}
		}
		images.add("%s", text)
	}
	if served {
		root.add("%s, depth %d, data path %s", count(d.Queues, "queue"), d.Depth, d.DataPath)
		counters(root.add("requests"), d)
	}
	if len(d.Users) > 0 {
		users := root.add("users")
		for _, u := range d.Users {
			users.add("%s", u)
		}
	} else if served {
		root.add("no users")
	}
	if len(d.Events) > 0 {
		events := root.add("events")
		for _, e := range d.Events {
			events.add("%s  %s  %s", e.Time.Local().Format(time.DateTime), e.Kind, oneLine(e.Message))
		}
	}
	root.add("created %s", d.Created.Local().Format(time.DateTime))
	return root
}

func counters(n *node, d *control.Device) {
	c := &d.Counters
	n.add("%s, %s", count(c.Reads, "read"), formatSize(int64(c.ReadBytes)))
	n.add("%s, %s", count(c.Writes, "write"), formatSize(int64(c.WriteBytes)))
	n.add("%s, %s", count(c.Discards, "discard"), formatSize(int64(c.DiscardBytes)))
	n.add("%s of zeroes, %s", count(c.WriteZeroes, "write"), formatSize(int64(c.WriteZeroBytes)))
	n.add("%s", plural(c.Flushes, "flush", "flushes"))
	n.add("%d in flight, %d parked for want of space", c.InFlight, c.Parked)
	n.add("%d took the slow path, %d failed", c.Slow, c.Errors)
}

func count[N int | uint64](n N, noun string) string { return plural(n, noun, noun+"s") }

func plural[N int | uint64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
