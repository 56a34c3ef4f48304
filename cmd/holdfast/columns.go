package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/api"
)

// listColumn is a column of list.
type listColumn struct {
	name  string // as --output has it
	help  string
	right bool
	cell  func(d *api.Device, bytes bool) string
}

// served says that a device's figures are known: one that waits for a server has none.
func served(d *api.Device) bool {
	return d.Path != "" && !d.Waits()
}

// size is a cell with a number of bytes.
func size(value func(d *api.Device) int64) func(*api.Device, bool) string {
	return func(d *api.Device, bytes bool) string {
		switch {
		case !served(d):
			return ""
		case bytes:
			return fmt.Sprint(value(d))
		}
		return formatSize(value(d))
	}
}

func text(value func(d *api.Device) string) func(*api.Device, bool) string {
	return func(d *api.Device, _ bool) string {
		if s := value(d); s != "" {
			return quote(s)
		}
		return ""
	}
}

// number is a cell with a figure.
func number[N int | int64 | uint64](value func(d *api.Device) N) func(*api.Device, bool) string {
	return func(d *api.Device, _ bool) string {
		if !served(d) {
			return ""
		}
		return fmt.Sprint(value(d))
	}
}

func flag(value func(d *api.Device) bool) func(*api.Device, bool) string {
	return func(d *api.Device, _ bool) string {
		if value(d) {
			return "1"
		}
		return "0"
	}
}

const usersColumn = "users"

var listColumns = []listColumn{
	{"name", "the device's name", false, text(func(d *api.Device) string { return d.Name })},
	{"device", "the path of its block device", false, text(func(d *api.Device) string { return d.Path })},
	{"size", "of the disk", true, size(func(d *api.Device) int64 { return d.Size })},
	{"ro", "read-only", true, flag(func(d *api.Device) bool { return d.ReadOnly })},
	{"state", "with how many requests of how many are held, if any", false, func(d *api.Device, _ bool) string { return stateOf(d) }},
	{"images", "how many there are", true, func(d *api.Device, _ bool) string { return fmt.Sprint(len(d.Images)) }},
	{"top", "the image that is written to", false, text(func(d *api.Device) string {
		if n := len(d.Images); n > 0 {
			return d.Images[n-1].Path
		}
		return ""
	})},
	{usersColumn, "who has it", false, func(d *api.Device, _ bool) string { return shortUsers(d.Users) }},
	{"id", "the driver's number", true, func(d *api.Device, _ bool) string {
		if d.Path == "" {
			return ""
		}
		return fmt.Sprint(d.ID)
	}},
	{"since", "when the state began", false, func(d *api.Device, _ bool) string { return moment(d.Since) }},
	{"created", "when it was created", false, func(d *api.Device, _ bool) string { return moment(d.Created) }},
	{"persist", "it comes back after a reboot", true, flag(func(d *api.Device) bool { return d.Persist })},
	{"base", "the lowest image", false, text(func(d *api.Device) string {
		if len(d.Images) > 0 {
			return d.Images[0].Path
		}
		return ""
	})},
	{"format", "of the top", false, text(func(d *api.Device) string {
		if n := len(d.Images); n > 0 {
			return d.Images[n-1].Format
		}
		return ""
	})},
	{"cluster", "cluster size", true, size(func(d *api.Device) int64 { return d.ClusterSize })},
	{"clusters", "of the disk", true, number(func(d *api.Device) uint64 { return d.Clusters })},
	{"allocated", "clusters that the top holds", true, number(func(d *api.Device) int64 { return d.Allocated })},
	{"datapath", "copy or zero-copy", false, text(func(d *api.Device) string { return d.DataPath })},
	{"queues", "each with a thread", true, number(func(d *api.Device) int { return d.Queues })},
	{"depth", "requests at once in a queue", true, number(func(d *api.Device) int { return d.Depth })},
	{"standby", "not supported, on or off", false, text(func(d *api.Device) string { return d.Standby.Value })},
	{"consumers", "who has a lease", false, text(func(d *api.Device) string { return strings.Join(d.Standby.Consumers, ",") })},
	{"held", "requests held now", true, number(func(d *api.Device) int64 { return d.Standby.Held })},
	{"tags", "requests that can be held", true, number(func(d *api.Device) int64 { return d.Standby.Tags })},
	{"resume", "manual or reopen", false, text(func(d *api.Device) string { return d.Standby.Resume })},
	{"cause", "of the standby", false, text(func(d *api.Device) string { return d.Standby.Cause })},
	{"oldest", "age of the oldest request under way", true, func(d *api.Device, _ bool) string {
		if d.Oldest == nil {
			return ""
		}
		return seconds(d.Oldest.Seconds)
	}},
	{"inflight", "requests under way", true, number(func(d *api.Device) int64 { return d.Counters.InFlight })},
	{"parked", "requests that wait for space", true, number(func(d *api.Device) int64 { return d.Counters.Parked })},
	{"reads", "requests that read", true, number(func(d *api.Device) uint64 { return d.Counters.Reads })},
	{"writes", "requests that wrote", true, number(func(d *api.Device) uint64 { return d.Counters.Writes })},
	{"flushes", "requests to make all durable", true, number(func(d *api.Device) uint64 { return d.Counters.Flushes })},
	{"rbytes", "bytes read", true, size(func(d *api.Device) int64 { return int64(d.Counters.ReadBytes) })},
	{"wbytes", "bytes written", true, size(func(d *api.Device) int64 { return int64(d.Counters.WriteBytes) })},
	{"errors", "requests that failed", true, number(func(d *api.Device) uint64 { return d.Counters.Errors })},
	{"slow", "requests off the fast path", true, number(func(d *api.Device) uint64 { return d.Counters.Slow })},
	{"problem", "what is wrong", false, text(func(d *api.Device) string { return d.Problem })},
}

// defaultColumns are the first so many.
const defaultColumns = 8

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02T15:04:05")
}

// chooseColumns reads --output: names with commas between; "all"; after a "+" they come behind
// the usual ones. "" are the usual ones.
func chooseColumns(s string) ([]listColumn, error) {
	var chosen []listColumn
	rest, more := strings.CutPrefix(s, "+")
	if s == "" || more {
		chosen = slices.Clone(listColumns[:defaultColumns])
	}
	if s == "" {
		return chosen, nil
	}
	for _, name := range strings.Split(rest, ",") {
		if name = strings.ToLower(strings.TrimSpace(name)); name == "recovery" {
			name = "resume" // what it was called before
		}
		i := slices.IndexFunc(listColumns, func(c listColumn) bool { return c.name == name })
		switch {
		case name == "all":
			chosen = append(chosen, listColumns...)
		case i < 0:
			return nil, usagef("list: there is no column %q; 'holdfast list -o help' lists them", name)
		default:
			chosen = append(chosen, listColumns[i])
		}
	}
	return chosen, nil
}

func columnNames() []string {
	var names []string
	for _, c := range listColumns {
		names = append(names, c.name)
	}
	return names
}
