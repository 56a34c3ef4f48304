package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/ploop"
)

// deviceTree is what show prints: what is wrong first, then what it is made of.
func deviceTree(d *api.Device) *node {
	head := quote(d.Name)
	if d.Path != "" {
		head += "  " + quote(d.Path)
		if d.Size > 0 { // of a device that waits it may not be known
			head += "  " + formatSize(d.Size)
		}
	}
	if d.ReadOnly {
		head += "  read-only"
	}
	if d.Damaged {
		head += "  damaged"
	}
	if d.Persist {
		head += "  persistent"
	}
	root := &node{text: head + "  " + d.State}
	if d.Problem != "" {
		n := root.add("problem: %s", oneLine(d.Problem))
		if d.Advice != "" {
			n.add("%s", oneLine(d.Advice))
		}
	}
	served := served(d)
	images := root.add("images, top first")
	for i := len(d.Images) - 1; i >= 0; i-- {
		im := d.Images[i]
		text := fmt.Sprintf("%d  %s", im.Level, quote(im.Path))
		if im.Format != "" {
			text += "  " + im.Format
		}
		if served {
			switch {
			case im.Direct && im.Cached:
				text += "  direct (perhaps through the page cache all the same)"
			case im.Direct:
				text += "  direct"
			default:
				text += "  buffered"
			}
			switch {
			case !im.Locked:
				text += "  not locked (its file system has no locks)"
			case im.Scope == ploop.ScopeMount:
				text += "  locked in its mount only"
			}
			if i == len(d.Images)-1 && d.Clusters > 0 && im.Format != "raw" {
				text += fmt.Sprintf("  %d of %d clusters of %s", d.Allocated, d.Clusters, formatSize(d.ClusterSize))
			}
		}
		n := images.add("%s", text)
		for _, w := range d.Displaced {
			if w.Level == im.Level {
				n.add("%s", oneLine(w.String()))
			}
		}
	}
	if served {
		root.add("%s, depth %d, data path %s", count(d.Queues, "queue"), d.Depth, d.DataPath)
		counters(root.add("requests"), d)
		latencies(root, d)
		standbyNode(root.add("standby: %s", d.Standby.Value), d)
	} else if d.Path != "" {
		standbyCause(root.add("standby: %s", d.Standby.Value), d)
	}
	if len(d.Users) > 0 {
		users := root.add("users")
		for _, u := range d.Users {
			users.add("%s", u)
		}
	} else if d.Path != "" {
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

func counters(n *node, d *api.Device) {
	c := &d.Counters
	n.add("%s, %s", count(c.Reads, "read"), formatSize(int64(c.ReadBytes)))
	n.add("%s, %s", count(c.Writes, "write"), formatSize(int64(c.WriteBytes)))
	n.add("%s, %s", count(c.Discards, "discard"), formatSize(int64(c.DiscardBytes)))
	n.add("%s of zeroes, %s", count(c.WriteZeroes, "write"), formatSize(int64(c.WriteZeroBytes)))
	n.add("%s", plural(c.Flushes, "flush", "flushes"))
	flight := fmt.Sprintf("%d in flight", c.InFlight)
	if d.Oldest != nil {
		flight += ", the oldest under way for " + seconds(d.Oldest.Seconds)
	}
	if flight += fmt.Sprintf(", %d parked for want of space", c.Parked); c.Parked > 0 {
		flight += ", the oldest for " + seconds(c.ParkedSeconds)
	}
	n.add("%s", flight)
	n.add("%d took the slow path, %d failed", c.Slow, c.Errors)
}

// latencies are of the sampled requests.
func latencies(root *node, d *api.Device) {
	n := node{text: fmt.Sprintf("latency, of one request in %d", api.LatencySample)}
	for _, l := range d.Latency {
		if l.Count > 0 {
			mean := time.Duration(l.Sum / float64(l.Count) * float64(time.Second))
			n.add("%s: mean %v, half below %v, 99%% below %v", l.Op, mean.Round(time.Microsecond), below(&l, 0.5), below(&l, 0.99))
		}
	}
	if len(n.kids) > 0 {
		root.kids = append(root.kids, n)
	}
}

// below is the bound that a part of the requests kept.
func below(l *api.Latency, part float64) string {
	sum := uint64(0)
	for i, n := range l.Buckets {
		if sum += n; float64(sum) >= part*float64(l.Count) && i < len(api.LatencyBounds) {
			return time.Duration(api.LatencyBounds[i] * float64(time.Second)).String()
		}
	}
	return "no bound"
}

// standbyCause is what is known of a device's standby without a server, too.
func standbyCause(n *node, d *api.Device) {
	s := &d.Standby
	if s.Flag && s.Since != nil {
		n.add("since %s: %s", s.Since.Local().Format(time.DateTime), oneLine(s.Cause))
	}
	if len(s.Consumers) > 0 {
		n.add("leases: %s", strings.Join(s.Consumers, ", "))
	}
}

func standbyNode(n *node, d *api.Device) {
	s := &d.Standby
	standbyCause(n, d)
	held := fmt.Sprintf("%d of %d requests held", s.Held, s.Tags)
	if s.Held > 0 {
		held += ", the oldest for " + seconds(s.HeldSeconds)
	}
	n.add("%s, %d were, %d of these failed", held, s.HeldTotal, s.HeldFailed)
	if s.Stuck > 0 {
		n.add("%s not come back from replaced files, the oldest for %s", plural(uint64(s.Stuck), "request has", "requests have"), seconds(s.StuckSeconds))
	}
	resume := "resume: " + s.Resume
	if s.Attempts > 0 {
		resume += ", " + count(s.Attempts, "attempt")
	}
	if s.NextAttempt != nil {
		resume += ", the next at " + s.NextAttempt.Local().Format(time.DateTime)
	}
	n.add("%s", resume)
	if s.LastError != "" {
		n.add("last failure: %s", oneLine(s.LastError))
	}
	for _, b := range s.BadRanges {
		n.add("errors of its own: %s", b)
	}
	if s.Deadline != nil {
		n.add("requests fail from %s", s.Deadline.Local().Format(time.DateTime))
	}
	if s.Entered > 0 {
		n.add("entered %s, %s, %.1f s in all", count(s.Entered, "time"), "resumed "+count(s.Resumed, "time"), s.Seconds)
	}
	for _, i := range slices.Sorted(maps.Keys(s.Inconsistencies)) {
		n.add("%s: %s", plural(s.Inconsistencies[i], "inconsistency", "inconsistencies"), i)
	}
}

// seconds is an age in whole seconds.
func seconds(s float64) string { return (time.Duration(s) * time.Second).String() }

func count[N int | uint64](n N, noun string) string { return plural(n, noun, noun+"s") }

func plural[N int | uint64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
